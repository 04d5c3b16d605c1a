"""Gates: two reports compared on the same inputs, and conditions that fail a build."""
