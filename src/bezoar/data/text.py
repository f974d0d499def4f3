"""Text as tokens: what they stand for, and windows over a long text that are samples without being copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bezoar.errors import ConfigError, DataError, nearest

#: What stands for the words that are not in a vocabulary, for the place before the first one, and for a text's end.
UNKNOWN, PADDING, END = "<unk>", "<pad>", "<eos>"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a text: ``names[i]`` is what token i stands for, a character or a word.

    Words are what is left between white space, in lower case. A word that is not among the names is ``<unk>`` if that
    is one of them.

    >>> letters = Vocabulary(("a", "b", " "), "character")
    >>> letters.encode("b a"), letters.decode([1, 2, 0])
    ([1, 2, 0], 'b a')
    >>> Vocabulary(("<unk>", "to", "be"), "word").encode("To be or")
    [1, 2, 0]
    """

    names: tuple[str, ...]
    level: Literal["character", "word"]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def places(self) -> dict[str, int]:
        """Name -> token."""
        return {name: token for token, name in enumerate(self.names)}

    @property
    def dtype(self) -> torch.dtype:
        """The smallest type that holds every token."""
        size = len(self.names)
        return torch.uint8 if size <= 2**8 else torch.int16 if size <= 2**15 else torch.int32

    def pieces(self, text: str) -> list[str]:
        """The characters or words of ``text``."""
        return list(text) if self.level == "character" else text.lower().split()

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text``. Raises ConfigError for one that is unknown, where nothing stands for such."""
        tokens = [self.places.get(piece, self.places.get(UNKNOWN, -1)) for piece in self.pieces(text)]
        if -1 in tokens:
            raise ConfigError(f"{self.pieces(text)[tokens.index(-1)]!r} is no {self.level} of this data set's text")
        return tokens

    def known(self, text: str) -> list[int]:
        """The tokens of ``text``. Raises ConfigError for what is not in the vocabulary, ``<unk>`` or not."""
        for piece in self.pieces(text):
            if piece not in self.places:
                near = f": {nearest(piece, self.names)}" if self.level == "word" and len(self) < 10**5 else ""
                raise ConfigError(f"{piece!r} is no {self.level} of this data set's vocabulary{near[:80]}")
        return self.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``."""
        return ("" if self.level == "character" else " ").join(self.names[token] for token in tokens)


class Windows:
    """N windows of T tokens over one long text: indexed as a tensor [N, T], in the memory of the text.

    Window i ends before position ``ends[i]`` (int64 [N], from T on) of ``tokens`` [L].
    """

    def __init__(self, tokens: Tensor, ends: Tensor, length: int) -> None:
        if len(ends) and not (ends.min() >= length and ends.max() < len(tokens)):
            raise DataError(f"windows of {length} tokens must end within the text of {len(tokens)}")
        self.tokens, self.ends, self.length = tokens, ends, length
        self._every = tokens.unfold(0, length, 1) if len(tokens) >= length else tokens.new_empty(0, length)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Windows ``rows`` as a tensor [n, T]."""
        return self._every[self.ends[rows] - self.length]

    def select(self, rows: Tensor) -> Windows:
        """Windows ``rows`` alone, over the same text."""
        return Windows(self.tokens, self.ends[rows], self.length)

    @property
    def shape(self) -> torch.Size:
        """[N, T]."""
        return torch.Size((len(self.ends), self.length))

    @property
    def ndim(self) -> int:
        """Two."""
        return 2

    @property
    def device(self) -> torch.device:
        """Where the text is."""
        return self.tokens.device

    @property
    def next(self) -> Tensor:
        """The token that follows each window, int64 [N]."""
        return self.tokens[self.ends].long()


@dataclass(frozen=True)
class Corpus:
    """Texts put one behind the other: ``tokens`` [L], and where each of the groups' texts starts and stops [G]."""

    tokens: Tensor
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[NDArray[np.integer]], vocabulary: Vocabulary, before: Sequence[int] = ()) -> Corpus:
        """The tokens of every group's text, each with the tokens ``before`` in front of it."""
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        stops = np.cumsum(lengths + len(before))
        front = np.array(before, dtype=np.int64)
        # One copy in the smallest type, not one of int64 beside it.
        numbers = {torch.uint8: np.uint8, torch.int16: np.int16, torch.int32: np.int32}[vocabulary.dtype]
        tokens = np.empty(int(stops[-1]) if len(stops) else 0, dtype=numbers)
        for text, stop, length in zip(texts, stops.tolist(), lengths.tolist(), strict=True):
            tokens[stop - length - len(front) : stop - length] = front
            tokens[stop - length : stop] = text
        return cls(torch.from_numpy(tokens), stops - lengths - len(front), stops)

    def windows(self, length: int, every: int = 1) -> tuple[Windows, NDArray[np.int64]]:
        """Windows of ``length`` tokens that lie within one group's text and are followed by a token of it; the group
        of each. A group's first window is its first ``length`` tokens, the next starts ``every`` tokens later.
        """
        ends = [np.arange(a + length, b, every) for a, b in zip(self.starts.tolist(), self.stops.tolist(), strict=True)]
        groups = np.repeat(np.arange(len(ends)), [len(part) for part in ends])
        whole = np.concatenate(ends) if ends else np.empty(0, dtype=np.int64)
        return Windows(self.tokens, torch.from_numpy(whole), length), groups
