"""What is run from a clone, and not installed: `python -m scripts.demo.train demo/`, from the clone's root."""
