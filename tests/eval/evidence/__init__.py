"""Evidence of evaluations: records, threat models, files."""
