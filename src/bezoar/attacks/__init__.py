"""Attacks: the adversary changes its data before, or its rows after, the clients' gradients."""

from bezoar.attacks.alie import ALIE
from bezoar.attacks.aux_poisoning import AuxPoisoning
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
from bezoar.attacks.edge_case import EdgeCase
from bezoar.attacks.inner_product import InnerProduct
from bezoar.attacks.label_flip import LabelFlip, wrong_labels
from bezoar.attacks.local_poison import ModelReplacement, Neurotoxin
from bezoar.attacks.mistakes import (
    BiasedSampling,
    DuplicatedRecords,
    LabelNoise,
    MislabelledClass,
    MissingFeatures,
    UnitError,
)
from bezoar.attacks.pgd import PGD, SingleStep
from bezoar.attacks.random_direction import RandomDirection
from bezoar.attacks.semantic import Semantic
from bezoar.attacks.sign_flip import SignFlip
from bezoar.attacks.trigger import DBA, BadNets
from bezoar.attacks.virtual_data import VirtualData
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
        "aux-poisoning": AuxPoisoning,
        "semantic": Semantic,
        "badnets": BadNets,
        "dba": DBA,
        "edge-case": EdgeCase,
        "model-replacement": ModelReplacement,
        "neurotoxin": Neurotoxin,
        "label-noise": LabelNoise,
        "mislabelled-class": MislabelledClass,
        "missing-features": MissingFeatures,
        "unit-error": UnitError,
        "biased-sampling": BiasedSampling,
        "duplicated-records": DuplicatedRecords,
        "virtual-data": VirtualData,
    },
)

__all__ = [
    "ALIE",
    "ATTACKS",
    "DBA",
    "PGD",
    "Attack",
    "AttackContext",
    "AuxPoisoning",
    "BadNets",
    "Batch",
    "BiasedSampling",
    "DataAttack",
    "DuplicatedRecords",
    "EdgeCase",
    "Goal",
    "InnerProduct",
    "Knowledge",
    "LabelFlip",
    "LabelNoise",
    "MislabelledClass",
    "MissingFeatures",
    "ModelReplacement",
    "Neurotoxin",
    "Poisoned",
    "RandomDirection",
    "Semantic",
    "Sent",
    "SignFlip",
    "SingleStep",
    "Tests",
    "UnitError",
    "UpdateAttack",
    "VirtualData",
    "wrong_labels",
]
