"""The matrix of client updates and the ways to answer questions about it."""

from bezoar.updates.base import Block, Layout, Needs, Segment, Updates
from bezoar.updates.dense import DenseUpdates
from bezoar.updates.gradients import client_gradients
from bezoar.updates.held import RowUpdates
from bezoar.updates.mixed import Mixed
from bezoar.updates.sharded import Sharded
from bezoar.updates.shifted import Shifted
from bezoar.updates.sketch import SketchUpdates
from bezoar.updates.stacked import Stacked

__all__ = [
    "Block",
    "DenseUpdates",
    "Layout",
    "Mixed",
    "Needs",
    "RowUpdates",
    "Segment",
    "Sharded",
    "Shifted",
    "SketchUpdates",
    "Stacked",
    "Updates",
    "client_gradients",
]
