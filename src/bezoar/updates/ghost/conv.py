"""Convolutions in one or two dimensions."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.kernels.gram import widened
from bezoar.updates.ghost.layer import GhostImpossibleError, Matrix, by_client, paired_norms

#: Up to this many numbers under the kernel, unfolding beats the library's weight gradient (CPU).
_FEW_TAPS = 32

#: From this many numbers in a sample on, a library call a client costs less than bringing clients side by side (CPU).
_LARGE_SAMPLE = 16384

#: Samples copied at a time when rows are formed.
_PIECE_BYTES = 64 * 2**20

#: Products of all pairs of pixels formed at a time.
_TABLE_BYTES = 64 * 2**20


class Conv2dLayer(Matrix):
    """A is [N, C, H, W] (padded only if the padding is not plain zeros), B is [N, P, H', W']."""

    kind: ClassVar[type[nn.Module]] = nn.Conv2d

    def __init__(self, module: nn.Conv1d | nn.Conv2d) -> None:
        self.units, self.width = module.out_channels, module.weight[0].numel()
        self.channels, self.groups = module.in_channels, module.groups
        self.ndim = module.weight.ndim
        self.kernel, self.stride, self.dilation = (
            _pair(module.kernel_size, 1),
            _pair(module.stride, 1),
            _pair(module.dilation, 1),
        )
        self.explicit, self.mode = _explicit_padding(module)
        around = _pair(tuple(module._reversed_padding_repeated_twice[::-2]), 0)
        self.padding = (0, 0) if self.explicit else around

    def inputs(self, a: Tensor) -> Tensor:
        if a.ndim != self.ndim:
            raise GhostImpossibleError(
                f"a convolution got an input of shape {list(a.shape)} without a sample dimension"
            )
        if self.explicit:
            a = F.pad(a, self.explicit, mode=self.mode)
        return a if a.ndim == 4 else a.unsqueeze(2)

    def gradients(self, a: Tensor, b: Tensor) -> Tensor:
        return b if b.ndim == 4 else b.unsqueeze(2)

    def bias_rows(self, b: Tensor, size: int) -> Tensor:
        return _positions(b, size).sum(1) if _channels_last(b) else by_client(b, size).sum((1, 3, 4))

    def rows(self, a: Tensor, b: Tensor, size: int, first: int, last: int) -> Tensor:
        outs, ins = self.units // self.groups, self.channels // self.groups
        low, high = first // outs, -(-last // outs)
        if self.groups > 1:
            a, b = a[:, low * ins : high * ins], b[:, low * outs : high * outs]
        else:
            b = b[:, first:last]
        unfold = self.groups == 1 and (a.device.type != "cpu" or self.width <= _FEW_TAPS)
        if not unfold and self.groups == 1 and a[0].numel() >= _LARGE_SAMPLE:
            return self._rows_one_by_one(a, b, size)
        form = self._unfolded_rows if unfold else self._rows_in_one_call
        positions = b.shape[2] * b.shape[3]
        per_sample = self.width * positions if unfold else a[0].numel() + b[0].numel()
        step = max(1, _PIECE_BYTES // max(1, size * per_sample * a.element_size())) * size
        pieces = zip(torch.split(a, step), torch.split(b, step), strict=True)
        parts = [form(x, y, size, high - low) for x, y in pieces]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.groups > 1:
            return rows[:, (first - low * outs) * self.width : (last - low * outs) * self.width]
        return rows

    def total(self, a: Tensor, b: Tensor) -> Tensor:
        return self._backward(a, b, self.groups).reshape(-1)

    def inner(self, a: Tensor, b: Tensor, vector: Tensor) -> Tensor:
        weight = vector.view(self.units, self.channels // self.groups, *self.kernel)
        image = F.conv2d(a, weight, None, self.stride, self.padding, self.dilation, self.groups)
        return (image.double() * b.double()).sum((1, 2, 3))

    def prefers_ghost(self, a: Tensor, b: Tensor, size: int) -> bool:
        positions = size * b.shape[2] * b.shape[3]
        return bool(self.groups == 1 and 2 * positions**2 <= self.units * self.width)

    def ghost_norms(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        seen = size * max(
            b.shape[2] * b.shape[3], (a.shape[2] + 2 * self.padding[0]) * (a.shape[3] + 2 * self.padding[1])
        )
        step = max(1, _TABLE_BYTES // (4 * seen**2)) * size
        norms = []
        for x, y in zip(torch.split(a, step), torch.split(b, step), strict=True):
            some, doubt = self._ghost_norms(widened(x), widened(y), size)
            if doubt.any():
                again = doubt.repeat_interleave(size)
                some[doubt], _ = self._ghost_norms(x[again].double(), y[again].double(), size)
            norms.append(some)
        return torch.cat(norms)

    def _ghost_norms(self, a: Tensor, b: Tensor, size: int) -> tuple[Tensor, Tensor]:
        out = b.shape[2] * b.shape[3]
        taps = self.kernel[0] * self.kernel[1]
        pixels = (a.shape[2] + 2 * self.padding[0]) * (a.shape[3] + 2 * self.padding[1])
        unfold_is_cheaper = taps * out**2 <= pixels**2
        windows = self._unfolded_gram(a, size) if unfold_is_cheaper else self._shifted_gram(a, size, b.shape[2:])
        right = _positions(b, size)
        return paired_norms(windows, torch.bmm(right, right.transpose(1, 2)))

    def _unfolded_gram(self, a: Tensor, size: int) -> Tensor:
        taps = F.unfold(a, self.kernel, self.dilation, self.padding, self.stride)
        rows = by_client(taps, size).transpose(2, 3).flatten(1, 2)
        return torch.bmm(rows, rows.transpose(1, 2))

    def _shifted_gram(self, a: Tensor, size: int, out: torch.Size) -> Tensor:
        """Inner products of all windows as sums over the kernel of shifted inner products of pixels.

        Costs C products per pair of pixels instead of C times the kernel's size per pair of windows. With pixels
        numbered row by row, moving both windows by one pixel is a step along the diagonal, so a shift of the whole
        table is an offset in memory; rows and columns of the kernel are summed one after the other.
        """
        up, left = self.padding
        a = F.pad(a, (left, left, up, up))
        rows = _positions(a, size)
        total = torch.bmm(rows, rows.transpose(1, 2)).flatten(1)
        pixels, (height, width) = rows.shape[1], a.shape[2:]
        for steps, step in ((self.kernel[1], self.dilation[1]), (self.kernel[0], self.dilation[0] * width)):
            shift = step * (pixels + 1)
            if steps > 1:
                # Entries whose window would leave the table are never read below.
                kept = total.shape[1] - (steps - 1) * shift
                shifted = total[:, :kept] + total[:, shift : shift + kept]
                for i in range(2, steps):
                    shifted += total[:, i * shift : i * shift + kept]
                total = shifted
        image, across = height * width, self.stride[0] * width
        last = (size - 1) * image + (out[0] - 1) * across + (out[1] - 1) * self.stride[1]
        assert last * (pixels + 1) < total.shape[1]
        windows = total.as_strided(
            (len(total), size, *out, size, *out),
            (
                total.stride(0),
                image * pixels,
                across * pixels,
                self.stride[1] * pixels,
                image,
                across,
                self.stride[1],
            ),
        )
        return windows.reshape(len(total), size * out[0] * out[1], -1)

    def _rows_one_by_one(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        """One library call a client, on views: nothing is copied."""
        rows = a.new_empty(len(a) // size, b.shape[1] * self.width)
        for row, x, y in zip(rows, torch.split(a, size), torch.split(b, size), strict=True):
            row.copy_(self._backward(x, y, 1).reshape(-1))
        return rows

    def _rows_in_one_call(self, a: Tensor, b: Tensor, size: int, groups: int) -> Tensor:
        """Clients as groups of one convolution over ``size`` samples.

        For small samples one library call a client costs the same when the machine is idle and many times more when
        it is not: every call waits for all threads.
        """
        clients = len(a) // size
        x, y = (by_client(v, size).transpose(0, 1).reshape(size, -1, *v.shape[2:]) for v in (a, b))
        return self._backward(x, y, clients * groups).reshape(clients, -1)

    def _unfolded_rows(self, a: Tensor, b: Tensor, size: int, groups: int) -> Tensor:
        """All windows side by side, times B: one product a client. For ``groups`` = 1."""
        up, left = self.padding
        a = F.pad(a, (left, left, up, up)).contiguous()
        clients, out = len(a) // size, b.shape[2:]
        sample, channel, row, column = a.stride()
        windows = a.as_strided(
            (clients, self.channels, *self.kernel, size, *out),
            (
                size * sample,
                channel,
                row * self.dilation[0],
                column * self.dilation[1],
                sample,
                row * self.stride[0],
                column * self.stride[1],
            ),
        )
        taps = windows.reshape(clients, self.width, -1)
        return torch.bmm(taps, _positions(b, size)).transpose(1, 2).flatten(1)

    def _backward(self, a: Tensor, b: Tensor, groups: int) -> Tensor:
        """The library's weight gradient: [P, C / groups, ...]."""
        # Only its shape counts.
        weight = a.new_empty(b.shape[1], self.channels // self.groups, *self.kernel)
        _, gradient, _ = torch.ops.aten.convolution_backward(
            b, a, weight, None, self.stride, self.padding, self.dilation, False, (0, 0), groups, (False, True, False)
        )
        assert isinstance(gradient, Tensor)
        return gradient


class Conv1dLayer(Conv2dLayer):
    """A convolution in one dimension, seen as one of height 1."""

    kind = nn.Conv1d


def _pair(option: object, fill: int) -> tuple[int, int]:
    """An option of one or two dimensions as one of two."""
    assert isinstance(option, tuple)
    return (fill, option[0]) if len(option) == 1 else (option[0], option[1])


def _explicit_padding(module: nn.Conv1d | nn.Conv2d) -> tuple[list[int], str]:
    """What to pad the input with beforehand, and how: not needed for symmetric zeros."""
    both: list[int] = list(module._reversed_padding_repeated_twice)
    if module.padding_mode != "zeros":
        return both, module.padding_mode
    return ([], "constant") if both[::2] == both[1::2] else (both, "constant")


def _channels_last(values: Tensor) -> bool:
    return values.is_contiguous(memory_format=torch.channels_last)


def _positions(values: Tensor, size: int) -> Tensor:
    """[g * size, C, H, W] as [g, size * H * W, C]."""
    return values.permute(0, 2, 3, 1).reshape(-1, size * values.shape[2] * values.shape[3], values.shape[1])
