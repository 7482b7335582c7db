"""What runs a graph: one folder a library, and `base`, all that a session may ask of any of them."""
