"""Numbers without a judgement: eager PyTorch, its float64 reference and the session users run, side by side."""
