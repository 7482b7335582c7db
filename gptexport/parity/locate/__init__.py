"""Where a wrong artifact is wrong, what that looks like, and which step on the way from the checkpoint caused it."""
