"""What the exporter writes and the runtime reads. All of it is data."""
