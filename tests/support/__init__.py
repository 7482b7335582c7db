"""What tests share, and scripts with them: tiny checkpoints, faults, stand-ins for hardware and libraries."""
