"""A small decoder transformer that writes the next token, of layers whose clients' gradients can be told apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from bezoar.errors import ConfigError
from bezoar.models._checks import whole


class Attention(nn.Module):
    r"""Causal self-attention of ``heads`` heads, with a projection of its own for queries, keys, values and output.

    .. math:: h_t = W_o \, [\,\mathrm{softmax}_{s \le t}(q_t \cdot k_s / \sqrt{w})\, v_s\,]_{\text{heads}}
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, last: bool) -> Tensor:
        """[N, T, width] -> the same, or what the last position alone gets, [N, 1, width]."""
        query = self._split(self.query(x[:, -1:] if last else x))
        # The last position sees all others: it needs no mask.
        seen = scaled_dot_product_attention(
            query, self._split(self.key(x)), self._split(self.value(x)), is_causal=not last
        )
        mixed: Tensor = self.output(seen.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    r"""Pre-norm residual block: :math:`x + \mathrm{attention}(\mathrm{LN}(x))`, then
    :math:`x + W_2\, \mathrm{gelu}(W_1 \mathrm{LN}(x))`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, last: bool) -> Tensor:
        """[N, T, width] -> the same, or the last position of it alone, [N, 1, width]."""
        x = (x[:, -1:] if last else x) + self.attention(self.norm1(x), last)
        changed: Tensor = self.down(gelu(self.up(self.norm2(x))))
        return x + changed


class Transformer(nn.Module):
    """Token and learned position embeddings, blocks, a last normalisation and a linear head.

    Only the last position is asked for its next token, so the last block computes keys and values for all positions
    and everything else for the last one. :meth:`every` asks all positions.
    """

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int, tied: bool) -> None:
        super().__init__()
        self.length = length
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                # Branches that add to the residual stream are smaller, so that its size does not grow with depth.
                branch = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if branch else 0.02)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [N, T] -> logits of the next one [N, vocabulary]."""
        return self._logits(tokens, last=True)[:, 0]

    def every(self, tokens: Tensor) -> Tensor:
        """Tokens [N, T] -> logits of the token after each of the last ``length`` positions [N, length, vocabulary]."""
        return self._logits(tokens, last=False)

    def _logits(self, tokens: Tensor, last: bool) -> Tensor:
        tokens = tokens[:, -self.length :]
        # One row of places for every sample: what watches the layers must find a sample's own in each.
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        x = self.tokens(tokens) + self.positions(places)
        for i, block in enumerate(self.blocks):
            x = block(x, last=last and i == len(self.blocks) - 1)
        logits: Tensor = self.head(self.norm(x))
        return logits


def transformer(
    shape: tuple[int, ...],
    classes: int,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 0,
    tied: bool = False,
) -> nn.Module:
    """Decoder transformer: causal, pre-norm, learned positions; 114,944 parameters for 80 of 76 characters.

    ``width`` features a token, ``layers`` blocks of ``heads`` attention heads and a perceptron of 4 ``width``;
    ``context``: it reads that many of a sample's tokens, the last ones (0: all T); ``tied``: the head's weight is the
    embedding's. Initialised as GPT-2 (Radford et al. 2019), which it is but for its sizes.
    """
    if len(shape) != 1:
        raise ConfigError(f"model 'transformer' needs tokens of shape (T,), samples are {shape}")
    if not isinstance(tied, bool):
        raise ConfigError(f"tied must be true or false, got {tied!r}")
    for key, value in (("width", width), ("layers", layers), ("heads", heads)):
        whole(key, value)
    if width % heads:
        raise ConfigError(f"width must be a multiple of heads, got width={width} and heads={heads}")
    if isinstance(context, bool) or not isinstance(context, int) or not 0 <= context <= shape[0]:
        raise ConfigError(f"context must be 0 (all) to {shape[0]}, the tokens of a sample, got {context!r}")
    return Transformer(classes, context or shape[0], width, layers, heads, tied)
