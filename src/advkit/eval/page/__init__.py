"""HTML page of a report: plain contents, pictures and curves, rendered as one file."""
