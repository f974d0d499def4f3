"""Posts of Reddit's users: the next word after ten, from LEAF's files or from a plain table of posts."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bezoar.data._files import matching
from bezoar.data._leaf import read_users
from bezoar.data._tables import read_columns
from bezoar.data.dataset import Dataset, Samples
from bezoar.data.text import END, PADDING, UNKNOWN, Corpus, Vocabulary, Windows
from bezoar.errors import DataError

_PATTERNS = {
    "train": ("train/*.json", "train.jsonl", "train.parquet"),
    "test": ("test/*.json", "test.jsonl", "test.parquet"),
}
WANTED = _PATTERNS
HINT = (
    ". The paper's corpus (Bagdasaryan et al., corpus_80000.pt.tar) is a pickle, which this library never opens: turn "
    'it into train.jsonl and test.jsonl, with lines {"user": "a", "text": "words of a post"}, as docs/data.md says'
)

#: Words before the one to be predicted, as in LEAF.
LENGTH = 10
#: Words that have a token of their own, the most frequent ones.
WORDS = 50_000
_SPECIAL = (PADDING, UNKNOWN, END)
#: LEAF's marks: what they are here, None for those that are left out.
_MARKS = {"<BOS>": None, "<PAD>": None, "<EOS>": END, "<UNK>": UNKNOWN}

#: User -> that user's words, every post ended by END, by number: the text itself would take ten times the memory.
_Posts: TypeAlias = "dict[str, array[int]]"
#: Word -> its number, in the order of the files.
_Numbers = dict[str, int]


def load_reddit(folder: Path, verify: bool, words: int = WORDS) -> Dataset | None:
    """The data set in ``folder``, or None if a file is not there. Raises DataError for a damaged one.

    A user's posts follow each other, each ended by ``<eos>``; before the first stand :data:`LENGTH` times ``<pad>``. A
    sample is :data:`LENGTH` tokens and the next one, ``<eos>`` included; words without a token of their own are
    ``<unk>`` in inputs and never targets. Words are in lower case. The vocabulary are ``<pad>``, ``<unk>``, ``<eos>``
    and the 50,000 most frequent words of the train posts, ties in the order of the alphabet. Test posts may be of users
    without train posts. The natural column ``user`` numbers the users in the order of their names.
    """
    found = {half: matching(folder, patterns) for half, patterns in _PATTERNS.items()}
    if not all(found.values()):
        return None
    numbers: _Numbers = {}
    train, test = (_posts(found[half], numbers) for half in ("train", "test"))
    vocabulary = Vocabulary((*_SPECIAL, *_frequent(train, numbers)[:words]), "word")
    tokens = np.full(len(numbers), vocabulary.places[UNKNOWN], dtype=np.int32)
    for token, name in enumerate(vocabulary.names):
        if name in numbers:
            tokens[numbers[name]] = token
    inputs, user = _windows(train, tokens, vocabulary)
    held_out, _ = _windows(test, tokens, vocabulary)
    for half, windows in (("train", inputs), ("test", held_out)):
        if not len(windows):
            raise DataError(f"{found[half][0]}: there is no word to predict in the {half} posts")
    return Dataset(
        "reddit",
        Samples(inputs, inputs.next),
        Samples(held_out, held_out.next),
        vocabulary.names,
        mean=(),
        std=(),
        natural={"user": user},
        vocabulary=vocabulary,
    )


def _frequent(posts: _Posts, numbers: _Numbers) -> list[str]:
    """The words of ``posts``, the most frequent ones first, ties in the order of the alphabet."""
    counts = np.zeros(len(numbers), dtype=np.int64)
    for text in posts.values():
        np.add.at(counts, np.asarray(text), 1)
    often = dict(zip(numbers, counts.tolist(), strict=True))
    return sorted(
        (word for word, count in often.items() if count and word not in _SPECIAL), key=lambda word: (-often[word], word)
    )


def _windows(posts: _Posts, tokens: NDArray[np.int32], vocabulary: Vocabulary) -> tuple[Windows, NDArray[np.int64]]:
    unknown, padding = vocabulary.places[UNKNOWN], vocabulary.places[PADDING]
    texts = [tokens[np.asarray(posts[user])] for user in sorted(posts)]
    windows, user = Corpus.of(texts, vocabulary, before=[padding] * LENGTH).windows(LENGTH)
    known = windows.next != unknown
    return Windows(windows.tokens, windows.ends[known], LENGTH), user[known.numpy()]


def _posts(paths: list[Path], numbers: _Numbers) -> _Posts:
    read = {".json": _leaf, ".jsonl": _lines, ".parquet": _parquet}[paths[0].suffix]
    posts: _Posts = {}
    for user, words in read(paths):
        posts.setdefault(user, array("i")).extend(numbers.setdefault(word, len(numbers)) for word in words)
    return posts


def _leaf(paths: list[Path]) -> Iterator[tuple[str, list[str]]]:
    for user, _, posts, where in read_users(paths, counted=False):
        for place, post in enumerate(posts):
            rows = post.get("target_tokens") if isinstance(post, dict) else None
            if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
                raise DataError(f"{where}: y[{place}] needs target_tokens, a list of lists of words")
            yield user, list(_marked(word for row in rows for word in _strings(row, f"{where}: y[{place}]")))


def _strings(row: list[Any], where: str) -> list[str]:
    if not all(isinstance(word, str) for word in row):
        raise DataError(f"{where}: words must be strings, got {next(w for w in row if not isinstance(w, str))!r}")
    return row


def _marked(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        mark = _MARKS.get(word, word.lower())
        if mark is not None and mark != PADDING:
            yield mark


def _lines(paths: list[Path]) -> Iterator[tuple[str, list[str]]]:
    for path in paths:
        with path.open(encoding="utf-8") as file:
            try:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _line(line, f"{path}, line {number}")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: not UTF-8 text ({error})") from error


def _line(line: str, where: str) -> tuple[str, list[str]]:
    try:
        post = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(post, dict) or not all(isinstance(post.get(key), str) for key in ("user", "text")):
        raise DataError(f"{where}: needs an object with the strings user and text")
    return post["user"], _words(post["text"])


def _parquet(paths: list[Path]) -> Iterator[tuple[str, list[str]]]:
    for path in paths:
        table = read_columns(path, {"user": "string", "text": "string"})
        for user, text in zip(table["user"], table["text"], strict=True):
            yield user, _words(text)


def _words(text: str) -> list[str]:
    words = [word for word in text.lower().split() if word != PADDING]
    return words if words[-1:] == [END] else [*words, END]
