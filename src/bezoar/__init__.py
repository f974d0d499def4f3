"""Federated learning under poisoning: defend the model, measure the attack, say what can be promised."""

from bezoar._version import __version__

__all__ = ["__version__"]
