"""Evidence: what an evaluation was run on, with what, against which threat, and its gates."""
