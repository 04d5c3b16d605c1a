"""Reports for other tools."""
