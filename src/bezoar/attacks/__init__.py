"""Attacks: the adversary changes its data before, or its rows after, the clients' gradients."""

from bezoar.attacks.alie import ALIE
from bezoar.attacks.base import (
    Attack,
    AttackContext,
    Batch,
    DataAttack,
    Goal,
    Knowledge,
    Poisoned,
    Sent,
    Tests,
    UpdateAttack,
)
from bezoar.attacks.inner_product import InnerProduct
from bezoar.attacks.label_flip import LabelFlip, wrong_labels
from bezoar.attacks.pgd import PGD, SingleStep
from bezoar.attacks.random_direction import RandomDirection
from bezoar.attacks.sign_flip import SignFlip
from bezoar.registry import Registry

ATTACKS: Registry[Attack] = Registry(
    "attack",
    {
        "pgd": PGD,
        "single-step": SingleStep,
        "random-direction": RandomDirection,
        "sign-flip": SignFlip,
        "ipm": InnerProduct,
        "alie": ALIE,
        "label-flip": LabelFlip,
    },
)

__all__ = [
    "ALIE",
    "ATTACKS",
    "PGD",
    "Attack",
    "AttackContext",
    "Batch",
    "DataAttack",
    "Goal",
    "InnerProduct",
    "Knowledge",
    "LabelFlip",
    "Poisoned",
    "RandomDirection",
    "Sent",
    "SignFlip",
    "SingleStep",
    "Tests",
    "UpdateAttack",
    "wrong_labels",
]
