"""Modular robust redundancy: defenders beside a model that tell how risky an input is."""
