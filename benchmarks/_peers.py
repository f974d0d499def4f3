"""Rules of other libraries, where they are installed; nothing else of those libraries is loaded."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def byzfl() -> Any | None:
    """ByzFL's aggregators, without the rest of the package, whose import needs torchvision and seaborn."""
    if "byzfl" not in sys.modules:
        found = importlib.util.find_spec("byzfl")
        if found is None or found.submodule_search_locations is None:
            return None
        package = types.ModuleType("byzfl")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def flower() -> Any | None:
    """Flower's aggregation functions."""
    try:
        return importlib.import_module("flwr.server.strategy.aggregate")
    except ImportError:
        return None


def byzfl_rules(n: int, f: int) -> dict[str, Callable[[Any], Any]]:
    """Our names -> ByzFL's rules with the same job, empty if it is not installed."""
    peer = byzfl()
    if peer is None:
        return {}
    rules: dict[str, Callable[[Any], Any]] = {
        "mean": peer.Average(),
        "median": peer.Median(),
        "trimmed-mean": peer.TrMean(f),
        "mea-med": peer.Meamed(f),
        "geometric-median": peer.GeometricMedian(),
        "krum": peer.Krum(f),
        "multi-krum": peer.MultiKrum(f),
        "centered-clipping": peer.CenteredClipping(),
        "caf": peer.CAF(f),
        "monna": peer.MoNNA(f),
        "nnm": peer.NNM(f),
        "bucketing": peer.Bucketing(2),
        "clip": peer.Clipping(2.0),
        "arc": peer.ARC(f),
    }
    if n <= 20:
        rules["mda"] = peer.MDA(f)
    return rules


def flower_rules(n: int, f: int) -> dict[str, Callable[[Any], Any]]:
    """Our names -> Flower's functions on a list of (arrays, number of samples), empty if it is not installed."""
    peer = flower()
    if peer is None:
        return {}

    def over(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda rows: function([([row], 1) for row in rows])

    return {
        "mean": over(peer.aggregate),
        "median": over(peer.aggregate_median),
        "trimmed-mean": over(lambda results: peer.aggregate_trimmed_avg(results, f / n)),
        "krum": over(lambda results: peer.aggregate_krum(results, f, 0)),
        "multi-krum": over(lambda results: peer.aggregate_krum(results, f, n - f)),
        "bulyan": over(lambda results: peer.aggregate_bulyan(results, f, peer.aggregate_krum, to_keep=0)),
    }


def kinds(values: Tensor) -> dict[str, Callable[[], Any]]:
    """The input as ByzFL takes it; rules that change their input get a fresh copy of it each time."""
    array = values.numpy()
    return {"torch": values.clone, "numpy": lambda: np.array(array), "rows": lambda: torch.unbind(values)}
