"""Flower: any rule, pipeline and server of bezoar as a ``Strategy``; attacks; an engine in one process.

Needs ``pip install 'bezoar[flower]'``.
"""

try:
    import flwr as _flwr  # noqa: F401
except ImportError as _error:
    raise ImportError("bezoar.integrations.flower needs Flower: pip install 'bezoar[flower]'") from _error

from bezoar.integrations.coordinator import Status, Verdict
from bezoar.integrations.flower.attacks import (
    LocalTask,
    Malicious,
    OmniscientGrid,
    attack_mod,
    malformed_mod,
    scaling_mod,
)
from bezoar.integrations.flower.engine import InProcessGrid, run_in_process
from bezoar.integrations.flower.roster import answer_roll_call
from bezoar.integrations.flower.sketches import sketch_mod
from bezoar.integrations.flower.strategy import RobustStrategy

__all__ = [
    "InProcessGrid",
    "LocalTask",
    "Malicious",
    "OmniscientGrid",
    "RobustStrategy",
    "Status",
    "Verdict",
    "answer_roll_call",
    "attack_mod",
    "malformed_mod",
    "run_in_process",
    "scaling_mod",
    "sketch_mod",
]
