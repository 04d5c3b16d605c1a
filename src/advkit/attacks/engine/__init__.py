"""Code that attacks share. The attacks themselves are in the files next to this folder."""
