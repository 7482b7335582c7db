"""The tests, and in `support` what tests and scripts share."""
