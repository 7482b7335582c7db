"""Which export of a checkpoint is the fastest here, of those that are exact enough? Each is made and measured."""
