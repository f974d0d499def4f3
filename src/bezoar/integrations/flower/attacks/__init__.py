"""Malicious clients in a Flower federation, by bezoar's own attacks.

Mods for clients that act by themselves (:func:`attack_mod`, :func:`scaling_mod`, :func:`malformed_mod`), and a grid for
those that know what all others send (:class:`OmniscientGrid`).
"""

from bezoar.integrations.flower.attacks.malformed import malformed_mod
from bezoar.integrations.flower.attacks.mods import attack_mod, scaling_mod
from bezoar.integrations.flower.attacks.omniscient import OmniscientGrid
from bezoar.integrations.flower.attacks.task import LocalTask
from bezoar.integrations.malicious import Malicious

__all__ = [
    "LocalTask",
    "Malicious",
    "OmniscientGrid",
    "attack_mod",
    "malformed_mod",
    "scaling_mod",
]
