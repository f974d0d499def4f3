"""Random streams derived from (seed, purpose, counters), so that no draw depends on what was drawn before it.

A round's cohort, a client's batches and an attacker's start each have a stream of their own. Skipping a round,
splitting work over processes or resuming a run therefore changes no draw.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for one purpose, for example ``derive(seed, "cohort", round)``.

    >>> derive(0, "cohort", 3) == derive(0, "cohort", 3) != derive(0, "cohort", 4)
    True
    """
    text = ":".join([str(int(seed)), purpose, *(str(int(c)) for c in counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose."""
    return torch.Generator(device=device).manual_seed(derive(seed, purpose, *counters))


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator for one purpose (Philox: the same stream on every platform)."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *counters)))
