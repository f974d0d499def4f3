"""What clients do: a cohort's samples and the global model in, updates out."""

from bezoar.clients.momentum import accumulate, check_memory
from bezoar.clients.regimes import CLIENTS, Clients, Gradient, LocalSGD, Work
from bezoar.clients.scratch import Scratch

__all__ = [
    "CLIENTS",
    "Clients",
    "Gradient",
    "LocalSGD",
    "Scratch",
    "Work",
    "accumulate",
    "check_memory",
]
