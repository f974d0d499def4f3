"""A language model of LSTM layers, written with plain linear layers so that clients' gradients can be told apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bezoar.errors import ConfigError
from bezoar.models._checks import whole


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
        watched = self.input._forward_hooks or self.recurrent._forward_hooks
        return self.unrolled(x) if watched or x.device.type != "cpu" else self._fused(x)

    def _fused(self, x: Tensor) -> Tensor:
        start = x.new_zeros(1, len(x), self.recurrent.in_features)
        none = torch.zeros_like(self.input.bias)
        weights = [self.input.weight, self.recurrent.weight, self.input.bias, none]
        states: Tensor = torch.lstm(x, (start, start), weights, True, 1, 0.0, self.training, False, True)[0]
        return states

    def unrolled(self, x: Tensor) -> Tensor:
        """The same, layer by layer and step by step."""
        driven = self.input(x).unbind(1)
        state: Tensor | None = None
        cell: Tensor | None = None
        states = []
        for gates in driven:
            if state is not None:
                gates = gates + self.recurrent(state)
            i, f, g, o = gates.chunk(4, 1)
            fresh = torch.sigmoid(i) * torch.tanh(g)
            cell = fresh if cell is None else torch.sigmoid(f) * cell + fresh
            state = torch.sigmoid(o) * torch.tanh(cell)
            states.append(state)
        return torch.stack(states, 1)


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
    hidden=200, tied=True``: the decoder's weight is the embedding's, whose clients' gradients are then taken one
    client at a time.
    """
    if len(shape) != 1:
        raise ConfigError(f"model 'lstm' needs tokens of shape (T,), samples are {shape}")
    if not isinstance(tied, bool):
        raise ConfigError(f"tied must be true or false, got {tied!r}")
    if tied and embedding != hidden:
        raise ConfigError(f"tied needs embedding = hidden, got {embedding} and {hidden}")
    whole("layers", layers)
    return LanguageModel(classes, whole("embedding", embedding), whole("hidden", hidden), layers, tied)
