"""Layer 3: reports for other tools."""
