"""What is asked of a GPU (`check`), and what can be found out about one without having it (`pretend`, `gelu_noise`)."""
