"""A language model of LSTM layers, written with plain linear layers so that clients' gradients can be told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bezoar.errors import ConfigError
from bezoar.models._checks import whole

#: (gates [N, 4 hidden], cell [N, hidden]) -> (state, cell).
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class LSTMLayer(nn.Module):
    r"""One LSTM layer.

    .. math:: (i, f, g, o)_t = W_x x_t + b + W_h h_{t-1}, \quad c_t = \sigma(f_t) c_{t-1} + \sigma(i_t) \tanh(g_t),
        \quad h_t = \sigma(o_t) \tanh(c_t)

    ``torch.nn.LSTM`` with ``bias_hh`` zero, which has two bias vectors that do the same. Its fused kernels hide the
    gradients of the gates; with two ``nn.Linear``, the second one called T times, layer inputs and output gradients
    explain every client's gradient. Where nobody watches the layers, torch's kernel does the same in one call (on a
    CPU; on a GPU it would round to fewer digits).
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, inputs] -> states [N, T, hidden]."""
        if self.input._forward_hooks or self.recurrent._forward_hooks:
            return self.unrolled(x, _Step.apply)
        return self._fused(x) if x.device.type == "cpu" else self.unrolled(x)

    def _fused(self, x: Tensor) -> Tensor:
        start = x.new_zeros(1, len(x), self.recurrent.in_features)
        none = torch.zeros_like(self.input.bias)
        weights = [self.input.weight, self.recurrent.weight, self.input.bias, none]
        states: Tensor = torch.lstm(x, (start, start), weights, True, 1, 0.0, self.training, False, True)[0]
        return states

    def unrolled(self, x: Tensor, step: Step | None = None) -> Tensor:
        """The same, layer by layer and step by step."""
        step = plain_step if step is None else step
        cell = x.new_zeros(len(x), self.recurrent.in_features)
        states: list[Tensor] = []
        for gates in self.input(x).unbind(1):
            state, cell = step(gates + self.recurrent(states[-1]) if states else gates, cell)
            states.append(state)
        return torch.stack(states, 1)


def plain_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """(state, cell) [N, hidden] from the gates before their activations [N, 4 hidden] and the cell before."""
    i, f, g, o = gates.chunk(4, 1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


class _Step(torch.autograd.Function):
    """:func:`plain_step` with its first derivative by hand: a third of the memory traffic."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, cell: Tensor) -> Any:
        active, hidden = torch.sigmoid(gates), cell.shape[1]
        g = active[:, 2 * hidden : 3 * hidden]
        # Activations are vectorised where memory is contiguous. Always a copy: the slice of a single row is contiguous
        # itself, and what it was cut from must stay.
        g.copy_(gates[:, 2 * hidden : 3 * hidden].clone(memory_format=torch.contiguous_format).tanh_())
        i, f, _, o = active.chunk(4, 1)
        fresh = torch.addcmul(f * cell, i, g)
        squashed = torch.tanh(fresh)
        ctx.save_for_backward(active, cell, squashed)
        return o * squashed, fresh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        to_state, to_fresh = gradients
        active, cell, squashed = ctx.saved_tensors
        i, f, g, o = active.chunk(4, 1)
        to_fresh = to_fresh + to_state * o * (1 - squashed * squashed)
        out = torch.empty_like(active)
        of_i, of_f, of_g, of_o = out.chunk(4, 1)
        torch.mul(to_fresh * g, i * (1 - i), out=of_i)
        torch.mul(to_fresh * cell, f * (1 - f), out=of_f)
        torch.mul(to_fresh * i, 1 - g * g, out=of_g)
        torch.mul(to_state * squashed, o * (1 - o), out=of_o)
        return out, to_fresh * f


class LanguageModel(nn.Module):
    """Embedding, LSTM layers, and a linear decoder that reads the last state."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layers = nn.Sequential(*(LSTMLayer(hidden if i else embedding, hidden) for i in range(layers)))
        self.decoder = nn.Linear(hidden, vocabulary)
        if tied:
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
            nn.init.zeros_(self.decoder.bias)
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [N, T] -> logits of the next one [N, vocabulary]."""
        logits: Tensor = self.decoder(self.layers(self.embedding(tokens))[:, -1])
        return logits


def lstm(
    shape: tuple[int, ...],
    classes: int,
    *,
    embedding: int = 8,
    hidden: int = 256,
    layers: int = 2,
    tied: bool = False,
) -> nn.Module:
    """Language model: embedding, ``layers`` LSTM layers of ``hidden`` units, decoder; LEAF's by default.

    816,812 parameters for 76 characters. SparseFed's text experiment, after Bagdasaryan et al., has ``embedding=200,
    hidden=200, tied=True``: the decoder's weight is the embedding's.
    """
    if len(shape) != 1:
        raise ConfigError(f"model 'lstm' needs tokens of shape (T,), samples are {shape}")
    if not isinstance(tied, bool):
        raise ConfigError(f"tied must be true or false, got {tied!r}")
    if tied and embedding != hidden:
        raise ConfigError(f"tied needs embedding = hidden, got {embedding} and {hidden}")
    whole("layers", layers)
    return LanguageModel(classes, whole("embedding", embedding), whole("hidden", hidden), layers, tied)
