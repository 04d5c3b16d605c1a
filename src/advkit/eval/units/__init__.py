"""Units of work of an evaluation: chunks of inputs, workers and their schedule."""
