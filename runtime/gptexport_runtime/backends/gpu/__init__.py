"""The GPU itself: driver, memory, tensors handed over without a copy."""
