"""Measurements: each script prints the table that docs/measurements/ or a page of docs/ shows."""
