"""Modular robust redundancy: defenders next to a model that detect adversarial inputs."""

from advkit.defenses.mrr.dictionaries import InputDefender
from advkit.defenses.mrr.latent_settings import Chain, LatentDefenders
from advkit.defenses.mrr.mrr import MRR

__all__ = ["MRR", "Chain", "InputDefender", "LatentDefenders"]
