"""Modular robust redundancy: defenders beside a model that tell how risky an input is."""

from advkit.defenses.mrr.dictionaries import InputDefender
from advkit.defenses.mrr.latent import Chain, LatentDefenders
from advkit.defenses.mrr.mrr import MRR

__all__ = ["MRR", "Chain", "InputDefender", "LatentDefenders"]
