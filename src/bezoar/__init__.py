"""Federated learning under poisoning: defend the model, measure the attack, say what can be promised."""

from bezoar._version import __version__
from bezoar.experiments import Experiment, RunResult, run

__all__ = ["Experiment", "RunResult", "__version__", "run"]
