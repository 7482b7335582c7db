"""The report: one HTML file that says it all."""
