"""The usual augmentation of small photographs, for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

PAD = 4


def crop_and_flip(images: Tensor, rows: Tensor | slice, generator: torch.Generator) -> Tensor:
    """Rows of ``images`` [M, C, H, W], each reflect-padded by 4, cropped at random, and mirrored with chance 1/2.

    One gather from the stored images: the padded copy never exists. H and W must exceed 4.
    """
    picked = torch.arange(len(images))[rows] if isinstance(rows, slice) else rows
    n, (height, width) = len(picked), images.shape[2:]
    down, right = torch.randint(-PAD, PAD + 1, (2, n, 1), generator=generator)
    mirrored = torch.randint(0, 2, (n, 1), generator=generator).bool()
    y = _reflect(torch.arange(height) + down, height)
    across = torch.arange(width).expand(n, width)
    x = _reflect(torch.where(mirrored, width - 1 - across, across) + right, width)
    # [n, H, W, C] would be the natural result of mixed indexing; index the channel too, so that C stays in front.
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return images[picked[:, None, None, None], channel, y[:, None, :, None], x[:, None, None, :]]


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions beyond the edge mirrored back into 0..size-1, the edge itself not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()
