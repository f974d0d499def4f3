"""Attacks: the adversary changes its data before, or its rows after, the clients' gradients."""

from bezoar.attacks._black_box import BlackBox, black_box
from bezoar.attacks.adaptive_sparsefed import AdaptivePGD
from bezoar.attacks.agr_tailored import AGRTailored
from bezoar.attacks.alie import ALIE
from bezoar.attacks.anti_cge import AntiCGE
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
from bezoar.attacks.counter_gradient import CounterGradient
from bezoar.attacks.edge_case import EdgeCase
from bezoar.attacks.fang import FangKrum, FangMedian, FangTrimmedMean
from bezoar.attacks.gaussian import Gaussian
from bezoar.attacks.inner_product import InnerProduct
from bezoar.attacks.label_flip import LabelFlip, wrong_labels
from bezoar.attacks.local_poison import ModelReplacement, Neurotoxin
from bezoar.attacks.mimic import Mimic
from bezoar.attacks.min_max import MinMax
from bezoar.attacks.min_sum import MinSum
from bezoar.attacks.mistakes import (
    BiasedSampling,
    DuplicatedRecords,
    LabelNoise,
    MislabelledClass,
    MissingFeatures,
    UnitError,
)
from bezoar.attacks.non_finite import NonFinite
from bezoar.attacks.optimised import OptimisedALIE, OptimisedIPM
from bezoar.attacks.pgd import PGD, SingleStep
from bezoar.attacks.random_direction import RandomDirection
from bezoar.attacks.semantic import Semantic
from bezoar.attacks.semantic_text import SemanticText
from bezoar.attacks.sign_flip import SignFlip
from bezoar.attacks.trigger import DBA, BadNets
from bezoar.attacks.virtual_data import VirtualData
from bezoar.attacks.worst_of import WorstOf
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
        "gaussian": Gaussian,
        "non-finite": NonFinite,
        "mimic": Mimic,
        "min-max": MinMax,
        "min-sum": MinSum,
        "agr-tailored": AGRTailored,
        "fang-krum": FangKrum,
        "fang-trimmed-mean": FangTrimmedMean,
        "fang-median": FangMedian,
        "anti-cge": AntiCGE,
        "label-flip": LabelFlip,
        "aux-poisoning": AuxPoisoning,
        "semantic": Semantic,
        "semantic-text": SemanticText,
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
        "worst-of": WorstOf,
        "opt-alie": OptimisedALIE,
        "opt-ipm": OptimisedIPM,
        "adaptive-pgd": AdaptivePGD,
        "black-box": BlackBox,
        "counter-gradient": CounterGradient,
    },
)

__all__ = [
    "ALIE",
    "ATTACKS",
    "DBA",
    "PGD",
    "AGRTailored",
    "AdaptivePGD",
    "AntiCGE",
    "Attack",
    "AttackContext",
    "AuxPoisoning",
    "BadNets",
    "Batch",
    "BiasedSampling",
    "BlackBox",
    "CounterGradient",
    "DataAttack",
    "DuplicatedRecords",
    "EdgeCase",
    "FangKrum",
    "FangMedian",
    "FangTrimmedMean",
    "Gaussian",
    "Goal",
    "InnerProduct",
    "Knowledge",
    "LabelFlip",
    "LabelNoise",
    "Mimic",
    "MinMax",
    "MinSum",
    "MislabelledClass",
    "MissingFeatures",
    "ModelReplacement",
    "Neurotoxin",
    "NonFinite",
    "OptimisedALIE",
    "OptimisedIPM",
    "Poisoned",
    "RandomDirection",
    "Semantic",
    "SemanticText",
    "Sent",
    "SignFlip",
    "SingleStep",
    "Tests",
    "UnitError",
    "UpdateAttack",
    "VirtualData",
    "WorstOf",
    "black_box",
    "wrong_labels",
]
