"""Robust rules: n updates in, one vector out.

>>> import torch
>>> (Clip(5.0) >> TrimmedMean(f=1))(torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0], [100.0, -100.0]]))
tensor([2.3333, 1.6667])
"""

from bezoar.aggregation.arc import ARC
from bezoar.aggregation.at_quantile import AtQuantile
from bezoar.aggregation.base import (
    Aggregate,
    Box,
    Columnwise,
    Constant,
    Context,
    Mixing,
    Ordered,
    Part,
    Pipeline,
    Rule,
    Sums,
    Weighting,
    draws,
)
from bezoar.aggregation.bayes_mean import BayesMean
from bezoar.aggregation.bucketing import Bucketing
from bezoar.aggregation.bulyan import Bulyan
from bezoar.aggregation.caf import CAF
from bezoar.aggregation.centered_clipping import CenteredClipping
from bezoar.aggregation.clip import Clip
from bezoar.aggregation.clipped_clustering import ClippedClustering
from bezoar.aggregation.dnc import DnC
from bezoar.aggregation.faba import FABA
from bezoar.aggregation.filter_l2 import FilterL2
from bezoar.aggregation.flame import FLAME
from bezoar.aggregation.fldetector import FLDetector
from bezoar.aggregation.fltrust import FLTrust
from bezoar.aggregation.foolsgold import FoolsGold
from bezoar.aggregation.geometric_median import GeometricMedian
from bezoar.aggregation.guarded_sip import GuardedSIP
from bezoar.aggregation.krum import Krum
from bezoar.aggregation.lasa import LASA
from bezoar.aggregation.lfighter import LFighter
from bezoar.aggregation.mea_med import MeaMed
from bezoar.aggregation.mean import Mean
from bezoar.aggregation.median import Median
from bezoar.aggregation.multi_krum import MultiKrum
from bezoar.aggregation.nearest import CVA, MoNNA
from bezoar.aggregation.nnm import NNM
from bezoar.aggregation.posterior_mean import PosteriorMean
from bezoar.aggregation.prior_mean import PriorMean
from bezoar.aggregation.prior_trimmed_mean import PriorTrimmedMean
from bezoar.aggregation.registry import RULES, pipeline, pipeline_tables
from bezoar.aggregation.sign_vote import SignVote
from bezoar.aggregation.signguard import SignGuard
from bezoar.aggregation.sip import SIP
from bezoar.aggregation.subsets import MDA, MVA, SMEA
from bezoar.aggregation.trimmed_mean import TrimmedMean

__all__ = [
    "ARC",
    "CAF",
    "CVA",
    "FABA",
    "FLAME",
    "LASA",
    "MDA",
    "MVA",
    "NNM",
    "RULES",
    "SIP",
    "SMEA",
    "Aggregate",
    "AtQuantile",
    "BayesMean",
    "Box",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Clip",
    "ClippedClustering",
    "Columnwise",
    "Constant",
    "Context",
    "DnC",
    "FLDetector",
    "FLTrust",
    "FilterL2",
    "FoolsGold",
    "GeometricMedian",
    "GuardedSIP",
    "Krum",
    "LFighter",
    "MeaMed",
    "Mean",
    "Median",
    "Mixing",
    "MoNNA",
    "MultiKrum",
    "Ordered",
    "Part",
    "Pipeline",
    "PosteriorMean",
    "PriorMean",
    "PriorTrimmedMean",
    "Rule",
    "SignGuard",
    "SignVote",
    "Sums",
    "TrimmedMean",
    "Weighting",
    "draws",
    "pipeline",
    "pipeline_tables",
]
