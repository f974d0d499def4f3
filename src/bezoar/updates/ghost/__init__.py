"""Client gradients from layer inputs and output gradients, without the n x d matrix."""

from bezoar.updates.ghost.layer import GhostImpossibleError
from bezoar.updates.ghost.run import ghost_gradients, sample_losses
from bezoar.updates.ghost.updates import GhostUpdates
from bezoar.updates.ghost.verify import verified

__all__ = ["GhostImpossibleError", "GhostUpdates", "ghost_gradients", "sample_losses", "verified"]
