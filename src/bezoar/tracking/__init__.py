"""Follow runs in TensorBoard, MLflow, Weights & Biases, or a tracker of your own.

The records in JSON lines are always written, and everything that trackers are told is read from them.
"""

from bezoar.tracking._mlflow import MLflow
from bezoar.tracking._tensorboard import TensorBoard
from bezoar.tracking._wandb import WeightsAndBiases
from bezoar.tracking.base import Series, Started, Tracker
from bezoar.tracking.kinds import TRACKERS, chosen, together
from bezoar.tracking.telling import Telling, values

__all__ = [
    "TRACKERS",
    "MLflow",
    "Series",
    "Started",
    "Telling",
    "TensorBoard",
    "Tracker",
    "WeightsAndBiases",
    "chosen",
    "together",
    "values",
]
