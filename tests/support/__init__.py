"""What the tests share: checkpoints made on the spot, faults, and stand-ins for what this machine lacks."""
