"""Softmax regression: samples with soft labels that have any reachable gradient exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezoar.attacks.gradient_to_data.base import GradientToData, Points, linear_parameters
from bezoar.errors import ConfigError


def even_factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``matrix`` [C, m] = A V^T with orthonormal columns in V [m, r] whose last entries are all alike.

    From the singular value decomposition, turned by a reflection. Of all such bases this one has the largest least
    last entry.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > values[:1].sum() * 1e-13).sum())
    a, v = left[:, :rank] * values[:rank], right[:rank].T
    last = v[-1]
    length = torch.linalg.vector_norm(last)
    if rank and length > 0:
        normal = last / length - torch.full_like(last, rank**-0.5)
        square = normal @ normal
        if square > 0:
            a = a - torch.outer(a @ normal, normal) * (2 / square)
            v = v - torch.outer(v @ normal, normal) * (2 / square)
    return a, v


@dataclass(frozen=True)
class SoftmaxExact(GradientToData):
    r"""Samples with soft labels that give softmax regression exactly the gradient G [C, p+1] (bias last).

    One sample (x, y) gives the rank-one matrix (softmax(Wx + b) - y) (x, 1)^T. Every G whose columns sum to zero over
    the classes is a sum of such ones:

    .. math:: G = \sum_i \sigma_i u_i v_i^\top,\quad x_i = v_{i,1..p}/v_{i,p+1},\quad w_i = \sigma_i v_{i,p+1} u_i,\\
        y_i = s_i - w_i/k_i,\quad s_i = \mathrm{softmax}(W x_i + b),\quad k_i = \lceil \max_c w_{i,c}/s_{i,c} \rceil

    with k_i copies of each. The v_i are turned within their span so that their last entries are alike, which makes the
    longest x_i as short as it can be. Where the model is sure of x_i, k_i is astronomical. Then, or where no v_i has a
    last entry, each direction v = (a, b) gets two samples instead, at x_0 +- t a/|a|, of weights
    sigma u (b +- |a|/t)/2 (v is that of G seen from x_0). x_0 is 0 or the nearest point where all outputs are equal,
    and each direction's t the best of a grid: the way with the fewest samples is taken. ``radius`` fixes t, with
    x_0 = 0, and so the length of all inputs. Without a bias x_i = t v_i. More than ``most`` samples are an error.

    Knows: the model and the gradient wanted.
    Cost: a singular value decomposition, O(C^2 p); the number of samples grows with G and with the model's certainty.
    Peers: none has it.
    Reference: derived here, after Farhadkhani, Guerraoui, Hoang, Villemaud: An Equivalence Between Data Poisoning and
        Byzantine Gradient Attacks, ICML 2022.
    """

    radius: float | None = None
    most: int = 100_000

    def __post_init__(self) -> None:
        if self.radius is not None and not (math.isfinite(self.radius) and self.radius > 0):
            raise ConfigError(f"SoftmaxExact: radius must be finite and positive, got {self.radius}")
        if self.most < 1:
            raise ConfigError(f"SoftmaxExact: most must be at least 1, got {self.most}")

    def __call__(self, model: nn.Module, gradient: Tensor) -> Points:
        weight, bias, matrix = linear_parameters(model, gradient, "SoftmaxExact")
        if len(weight) < 2:
            raise ConfigError("SoftmaxExact: softmax needs at least two outputs, this model has one")
        # On the CPU, so that every device gets the same samples.
        g, w = _balanced(matrix.double().cpu()), weight.double().cpu()
        b = w.new_zeros(len(w)) if bias is None else bias.double().cpu()
        found: tuple[float, Tensor, Tensor, Tensor] | None = None
        for inputs, weights in self._ways(g, w, b, bias is not None):
            s = torch.softmax(inputs @ w.T + b, dim=1)
            copies = _copies(weights, s)
            total = float(copies.sum())
            if math.isfinite(total) and (found is None or total < found[0]):
                found = total, inputs, s - weights / copies[:, None], copies
        if found is None or found[0] > self.most:
            many = "infinitely many" if found is None else f"{found[0]:.3g}"
            raise ConfigError(f"SoftmaxExact: {many} samples were needed, most={self.most}; the model is too sure")
        _, inputs, labels, copies = found
        times = copies.long().to(weight.device)
        # Few samples become many copies: only these are large, so everything else comes first.
        return Points(inputs.to(weight).repeat_interleave(times, 0), labels.to(weight).repeat_interleave(times, 0))

    def _ways(self, g: Tensor, w: Tensor, b: Tensor, biased: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [P, p] and weights [P, C] whose products, with a 1 for the bias, sum to ``g``."""
        a, v = even_factors(g)
        if not v.shape[1]:
            yield w.new_zeros(1, w.shape[1]), w.new_zeros(1, len(w))
            return
        powers = [2.0**power for power in range(-6, 7)] if self.radius is None else [self.radius]
        if not biased:
            scale = _unit(w, v.T) if self.radius is None else torch.ones_like(v[:1].T)
            for power in powers:
                yield scale * power * v.T, a.T / (scale * power)
            return
        if self.radius is None and bool(v[-1].abs().min() > 1e-9):
            yield (v[:-1] / v[-1]).T, (a * v[-1]).T
        centres = [w.new_zeros(w.shape[1])]
        if self.radius is None:
            centres.append(torch.linalg.lstsq(w[1:] - w[0], b[0] - b[1:], driver="gelsd").solution)
        for centre in centres:
            seen = torch.cat([g[:, :-1] - torch.outer(g[:, -1], centre), g[:, -1:]], dim=1)
            a, v = even_factors(seen)
            lengths = torch.linalg.vector_norm(v[:-1], dim=0)
            units = (v[:-1] / lengths.clamp(min=1e-300)).T
            scale = _unit(w, units) if self.radius is None else torch.ones_like(units[:, :1])
            best: tuple[Tensor, Tensor, Tensor] | None = None
            for power in powers:
                t = scale * power
                plus, minus = a.T * (v[-1] + lengths / t.T).T / 2, a.T * (v[-1] - lengths / t.T).T / 2
                inputs = torch.stack([centre + t * units, centre - t * units])
                weights = torch.stack([plus, minus])
                cost = _copies(weights, torch.softmax(inputs @ w.T + b, dim=-1)).sum(0)
                if best is None:
                    best = cost, inputs, weights
                    continue
                # Every direction has a t of its own.
                better = cost < best[0]
                best = (
                    torch.where(better, cost, best[0]),
                    torch.where(better[:, None], inputs, best[1]),
                    torch.where(better[:, None], weights, best[2]),
                )
            assert best is not None
            yield best[1].flatten(0, 1), best[2].flatten(0, 1)


def _unit(w: Tensor, directions: Tensor) -> Tensor:
    """For each direction [r, p] the length [r, 1] at which outputs differ by about 1."""
    spread: Tensor = torch.linalg.vector_norm(directions @ (w - w.mean(0)).T, dim=1, keepdim=True)
    return spread.clamp(min=1e-100).reciprocal()


def _copies(weights: Tensor, chances: Tensor) -> Tensor:
    """How many copies of each sample keep its labels from being negative; infinite where the model is all too sure."""
    return (weights / chances).amax(-1).ceil().nan_to_num(nan=torch.inf).clamp(min=1)


def _balanced(g: Tensor) -> Tensor:
    """``g`` without the rounding errors of its column sums. Raises ConfigError if they are more than that."""
    sums, scale = g.sum(0), float(g.abs().max())
    worst = int(sums.abs().argmax())
    if float(sums[worst].abs()) > 1e-4 * scale:
        raise ConfigError(
            f"SoftmaxExact: no data have this gradient: over the classes it must sum to zero for every input, but "
            f"column {worst} sums to {float(sums[worst]):.3g}; subtract the mean over classes first"
        )
    return g - g.mean(0)
