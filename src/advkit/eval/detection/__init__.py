"""How well detectors tell adversarial from clean inputs."""
