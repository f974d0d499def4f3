"""Attacks: the adversary changes its data before, or its rows after, the clients' gradients."""

from bezoar.attacks.base import Attack, AttackContext, DataAttack, Goal, UpdateAttack
from bezoar.attacks.label_flip import LabelFlip, wrong_labels
from bezoar.attacks.pgd import PGD, SingleStep
from bezoar.attacks.random_direction import RandomDirection
from bezoar.registry import Registry

ATTACKS: Registry[Attack] = Registry(
    "attack",
    {"pgd": PGD, "single-step": SingleStep, "random-direction": RandomDirection, "label-flip": LabelFlip},
)

__all__ = [
    "ATTACKS",
    "PGD",
    "Attack",
    "AttackContext",
    "DataAttack",
    "Goal",
    "LabelFlip",
    "RandomDirection",
    "SingleStep",
    "UpdateAttack",
    "wrong_labels",
]
