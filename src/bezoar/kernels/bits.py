"""Checksums of tensors: cheap enough to take in every round."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(values: Tensor) -> Tensor:
    """Sum of the bit patterns of ``values`` as integers, modulo 2**64: int64, no dimensions."""
    flat, size = values.reshape(-1), values.element_size()
    # Eight aligned bytes at a time where possible: torch sums other integers many times more slowly.
    lead = -flat.storage_offset() % (8 // size)
    stop = lead + max(0, len(flat) - lead) // (8 // size) * (8 // size)
    ends = torch.cat([flat[:lead], flat[stop:]]).view(_INTEGERS[size])
    return flat[lead:stop].view(torch.int64).sum() * 3 + ends.sum(dtype=torch.int64)
