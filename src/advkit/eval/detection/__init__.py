"""Scores of detectors of adversarial inputs."""
