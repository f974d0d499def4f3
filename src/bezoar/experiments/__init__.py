"""Experiments: one description, rounds, records on disk, resume, grids."""

from bezoar.experiments.config import Experiment
from bezoar.experiments.run import RunResult, run

__all__ = ["Experiment", "RunResult", "run"]
