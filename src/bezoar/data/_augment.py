"""The usual augmentation of small photographs, for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

PAD = 4


def crop_and_flip(
    images: Tensor, rows: Tensor | slice, generator: torch.Generator, only: Tensor | None = None
) -> Tensor:
    """Rows of ``images`` [M, C, H, W], each reflect-padded by 4, cropped at random, and mirrored with chance 1/2.

    The padded copy never exists. H and W must exceed 4. Draws come from a CPU generator, wherever the images are.
    ``only`` [m] are the positions among the rows that come back, if not all; the draws are those of all.
    """
    everyone = torch.arange(len(images), device=images.device)
    picked = everyone[rows if isinstance(rows, slice) else rows.to(images.device)]
    n, (channels, height, width) = len(picked), images.shape[1:]
    down, right = torch.randint(-PAD, PAD + 1, (2, n, 1), generator=generator).to(images.device)
    mirrored = torch.randint(0, 2, (n, 1), generator=generator).bool().to(images.device)
    if only is not None:
        only = only.to(images.device)
        picked, down, right, mirrored = picked[only], down[only], right[only], mirrored[only]
        n = len(only)
    y = _reflect(torch.arange(height, device=images.device) + down, height)
    across = torch.arange(width, device=images.device).expand(n, width)
    x = _reflect(torch.where(mirrored, width - 1 - across, across) + right, width)
    # Image lines are contiguous: copying whole lines first, then shifting within them, is 8 times as fast as one gather
    # with four indices.
    planes = picked[:, None] * channels + torch.arange(channels, device=images.device)
    lines = (planes[:, :, None] * height + y[:, None, :]).reshape(-1)
    cropped = images.reshape(-1, width).index_select(0, lines).view(n, channels, height, width)
    return cropped.gather(3, x[:, None, None, :].expand_as(cropped))


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions beyond the edge mirrored back into 0..size-1, the edge itself not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()
