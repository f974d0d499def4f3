"""Shakespeare's plays by speaking role: the next character after eighty."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bezoar.data._files import check_sha256, find
from bezoar.data._tables import read_columns
from bezoar.data.dataset import Dataset, Samples
from bezoar.data.text import Corpus, Vocabulary
from bezoar.errors import DataError

WANTED = {"roles": ("clients.parquet",)}

#: Characters before the one to be predicted, as in LEAF.
LENGTH = 80
#: The 76 characters of the text, in the order of their codes.
CHARACTERS = "\n !$&',-.0123456789:;?" + string.ascii_uppercase + "[]" + string.ascii_lowercase
VOCABULARY = Vocabulary(tuple(CHARACTERS), "character")

_TRAIN_SHARE = 0.8
#: SHA-256 of clients.parquet.
PUBLISHED = "bf942ddcd7c599c666ea142ae6bdbe51b25bdaf56773610b05d48d4852748582"
_COLUMNS = {"client_id": "string", "play": "string", "speeches": "list of strings"}


def load_shakespeare(folder: Path, verify: bool) -> Dataset | None:
    """The data set in ``folder``, or None if its file is not there. Raises DataError for a damaged one.

    A sample is :data:`LENGTH` characters of one role and the next one. Of a role's speeches the first 80 % are train
    data (one at least), the rest test data; speeches are joined by a line break. Every character that has 80 before it
    in the role's train text is a target; test windows do not overlap, so that there are as many as is usual of a test
    set and each says something new. Class and token of a character are its place in :data:`CHARACTERS`. The natural
    columns are ``role`` (the row of the file) and ``play``.
    """
    path = find(folder, WANTED["roles"])
    if path is None:
        return None
    if verify:
        check_sha256(path, PUBLISHED, path.read_bytes())
    table = read_columns(path, _COLUMNS)
    roles, plays = table["client_id"], np.unique(table["play"], return_inverse=True)[1]
    train, test = [], []
    for role, speeches in zip(roles, table["speeches"], strict=True):
        if not speeches:
            raise DataError(f"{path}: role {role!r} has no speeches")
        cut = max(1, int(_TRAIN_SHARE * len(speeches)))
        train.append(_tokens("\n".join(speeches[:cut]), f"{path}: role {role!r}"))
        test.append(_tokens("\n".join(speeches[cut:]), f"{path}: role {role!r}"))
    inputs, role = Corpus.of(train, VOCABULARY).windows(LENGTH)
    held_out, said_by = Corpus.of(test, VOCABULARY).windows(LENGTH, every=LENGTH)
    if not len(inputs) or not len(held_out):
        raise DataError(f"{path}: no role has more than {LENGTH} characters to train on and to test with")
    return Dataset(
        "shakespeare",
        Samples(inputs, inputs.next),
        Samples(held_out, held_out.next),
        tuple(CHARACTERS),
        mean=(),
        std=(),
        natural={"role": role, "play": plays[role].astype(np.int64)},
        vocabulary=VOCABULARY,
        natural_test={"role": said_by, "play": plays[said_by].astype(np.int64)},
    )


#: Code -> token, 255 for what has none; the last entry stands for all codes beyond ASCII.
_CODES = np.full(129, 255, dtype=np.uint8)
_CODES[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))


def _tokens(text: str, where: str) -> NDArray[np.uint8]:
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    tokens = _CODES[np.minimum(codes, len(_CODES) - 1)]
    if (tokens == 255).any():
        unknown = chr(codes[int((tokens == 255).argmax())])
        raise DataError(f"{where}: {unknown!r} is none of the {len(CHARACTERS)} characters {CHARACTERS!r}")
    return tokens
