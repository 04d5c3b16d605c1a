"""Layer 2: detectors of attacks, told by what the attacked model answers."""
