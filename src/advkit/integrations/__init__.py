"""Layer 3: evaluations in trackers and test reports, each module behind its own import."""
