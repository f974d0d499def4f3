from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.data import Dataset, Natural, Samples, load, partition
from bezoar.data._reddit import load_reddit
from bezoar.data._shakespeare import CHARACTERS, LENGTH, VOCABULARY
from bezoar.data.text import Corpus, Vocabulary, Windows
from bezoar.errors import ConfigError, DataError

LETTERS = Vocabulary(tuple("abcdefghij"), "character")


@given(
    texts=st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=6),
    length=st.integers(1, 4),
    every=st.integers(1, 5),
    before=st.lists(st.integers(0, 9), max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_windows_are_slices_of_each_groups_own_text(
    texts: list[list[int]], length: int, every: int, before: list[int]
) -> None:
    corpus = Corpus.of([np.array(text, dtype=np.int64) for text in texts], LETTERS, before)
    windows, groups = corpus.windows(length, every)
    expected = [
        (group, (whole := before + text)[at : at + length], whole[at + length])
        for group, text in enumerate(texts)
        for at in range(0, len(before) + len(text) - length, every)
    ]
    assert windows.shape == (len(expected), length)
    assert groups.tolist() == [group for group, _, _ in expected]
    assert windows[slice(None)].tolist() == [inside for _, inside, _ in expected]
    assert windows.next.tolist() == [after for _, _, after in expected]
    if expected:
        rows = torch.tensor([len(expected) - 1, 0, 0])
        assert windows[rows].tolist() == [expected[i][1] for i in rows.tolist()]


def test_windows_share_the_memory_of_the_text() -> None:
    tokens = torch.zeros(100_000, dtype=torch.uint8)
    windows = Windows(tokens, torch.arange(80, 100_000), 80)
    assert windows._every.data_ptr() == tokens.data_ptr()
    assert windows[torch.tensor([5])].dtype == torch.uint8
    with pytest.raises(DataError, match="must end within the text of 100000"):
        Windows(tokens, torch.tensor([100_000]), 80)


def test_vocabularies_take_the_smallest_type_and_tell_what_they_do_not_know() -> None:
    assert [Vocabulary(tuple(map(str, range(n))), "word").dtype for n in (256, 257, 40_000)] == [
        torch.uint8, torch.int16, torch.int32,
    ]  # fmt: skip
    words = Vocabulary(("<unk>", "people", "are"), "word")
    assert words.encode("People who  are\n") == [1, 0, 2]
    assert words.decode([1, 2]) == "people are"
    with pytest.raises(ConfigError, match=r"'pople' is no word .* did you mean 'people'"):
        words.known("pople are")
    with pytest.raises(ConfigError, match="'z' is no character"):
        LETTERS.encode("baz")


def test_tokens_are_never_scaled() -> None:
    part = Samples(torch.tensor([[0, 9, 3], [1, 1, 1]], dtype=torch.uint8), torch.tensor([4, 5]))
    text = Dataset("toy", part, part, LETTERS.names, mean=(), std=(), vocabulary=LETTERS)
    assert text.shape == (3,)
    batch = text.batch(text.train, np.array([1, 0]), augment=torch.Generator())
    assert batch.dtype == torch.int64
    assert batch.tolist() == [[1, 1, 1], [0, 9, 3]]
    outside = Samples(torch.tensor([[0, 10, 3]], dtype=torch.uint8), torch.tensor([4]))
    with pytest.raises(DataError, match=r"train tokens must be integers in 0\.\.9"):
        Dataset("toy", outside, part, LETTERS.names, mean=(), std=(), vocabulary=LETTERS)
    with pytest.raises(DataError, match="tokens are samples of shape"):
        Dataset("toy", part, part, LETTERS.names, mean=(0.0,), std=(1.0,), vocabulary=LETTERS)
    floats = Samples(torch.zeros(1, 3), torch.tensor([4]))
    with pytest.raises(DataError, match="tokens must be integers"):
        Dataset("toy", floats, floats, LETTERS.names, mean=(), std=(), vocabulary=LETTERS)


# Shakespeare


def roles(folder: Path, given: dict[str, list[str]], **columns: Any) -> Path:
    (folder / "shakespeare").mkdir(exist_ok=True)
    table = {
        "client_id": [f"play{i % 2}/{role}" for i, role in enumerate(given)],
        "play": [f"play{i % 2}" for i in range(len(given))],
        "speeches": list(given.values()),
    }
    table |= columns
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), folder / "shakespeare/clients.parquet")
    return folder


def test_shakespeare_is_what_its_file_says(tmp_path: Path) -> None:
    long = [letter * 50 for letter in "abcdefghij"]
    roles(tmp_path, {"A": long, "SILENT": ["too short"], "B": ["x" * 90]})
    text = load("shakespeare", tmp_path, verify=False)
    assert text.shape == (80,)
    assert text.classes == tuple(CHARACTERS)
    train, test = "\n".join(long[:8]), "\n".join(long[8:])
    assert len(text.train) == len(train) - 80 + 10
    assert text.natural["role"].tolist() == [0] * (len(train) - 80) + [2] * 10
    assert text.natural["play"].tolist() == [0] * len(text.train)
    for row in (0, 7, len(train) - 81):
        window = text.batch(text.train, torch.tensor([row]))[0].tolist()
        assert VOCABULARY.decode(window) == train[row : row + 80]
        assert text.classes[text.train.targets[row]] == train[row + 80]
    assert len(text.test) == 1
    assert VOCABULARY.decode(text.batch(text.test, slice(0, 1))[0].tolist()) == test[:80]
    # A role without a window is no client.
    assert partition(text, Natural("role"), 0).n == 2


def test_shakespeare_as_it_is_published(data_dir: Path) -> None:
    text = load("shakespeare", data_dir)
    assert len(CHARACTERS) == 76
    assert (len(text.train), len(text.test)) == (3_292_850, 11_112)
    federation = partition(text, Natural("role"), 0)
    assert federation.n == 1_094
    assert len(np.unique(text.natural["play"])) == 37
    first = text.batch(text.train, slice(0, 1))[0].tolist()
    assert VOCABULARY.decode(first).startswith("So shaken as we are, so wan with care,\nFind we")
    inputs = text.train.inputs
    assert isinstance(inputs, Windows)
    assert inputs.tokens.nbytes < 2**22
    majority = np.bincount(text.test.targets).max() / len(text.test)
    assert majority == pytest.approx(0.159, abs=0.01)
    assert text.shape == (LENGTH,)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"speeches": None}, "has client_id, play; needs client_id, play, speeches"),
        ({"speeches": ["one string"]}, "'speeches' must be a list of strings, is string"),
        ({"speeches": [[1, 2]]}, "'speeches' must be a list of strings, is list"),
        ({"speeches": [["a", None]]}, "'speeches' must not have nulls"),
        ({"play": [3]}, "'play' must be a string, is int64"),
        ({"speeches": pa.array([[]], pa.list_(pa.string()))}, "role 'play0/A' has no speeches"),
        ({"speeches": [["caf\u00e9"]]}, "role 'play0/A': 'é' is none of the 76 characters"),
        ({"speeches": [["short"]]}, "no role has more than 80 characters"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    roles(tmp_path, {"A": ["x" * 200]}, **columns)
    with pytest.raises(DataError, match=words):
        load("shakespeare", tmp_path, verify=False)


def test_files_that_are_not_the_published_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked for clients\.parquet\. Give the directory .* BEZOAR_DATA$"):
        load("shakespeare", tmp_path)
    roles(tmp_path, {"A": ["x" * 200] * 5})
    with pytest.raises(DataError, match=r"clients\.parquet: content is not the published file"):
        load("shakespeare", tmp_path)
    (tmp_path / "shakespeare/clients.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(DataError, match=r"clients\.parquet: not a readable parquet file"):
        load("shakespeare", tmp_path, verify=False)


# Reddit

POSTS = {
    "train": [("zoe", "A b a"), ("ann", "b b  C"), ("zoe", "a d")],
    "test": [("bob", "a B new")],
}


def jsonl(folder: Path, posts: dict[str, list[tuple[str, str]]] = POSTS) -> Path:
    (folder / "reddit").mkdir(exist_ok=True)
    for half, rows in posts.items():
        lines = [json.dumps({"user": user, "text": text}) for user, text in rows]
        (folder / "reddit" / f"{half}.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return folder


def leaf(folder: Path, posts: dict[str, list[tuple[str, str]]] = POSTS) -> Path:
    """As LEAF's scripts write it: rows of ten tokens, inputs and targets, padded."""

    def rows(words: list[str]) -> list[list[str]]:
        padded = words + ["<PAD>"] * (-len(words) % 10)
        return [padded[i : i + 10] for i in range(0, len(padded), 10)]

    for half, rows_of in posts.items():
        (folder / "reddit" / half).mkdir(parents=True)
        users: dict[str, dict[str, list[Any]]] = {}
        for user, text in rows_of:
            words = text.lower().split()
            data = users.setdefault(user, {"x": [], "y": []})
            data["x"].append(rows(["<BOS>", *words, "<EOS>"]))
            data["y"].append({"subreddit": "s", "target_tokens": rows([*words, "<EOS>", "<PAD>"]), "count_tokens": []})
        # The counts are those of before the split, as in LEAF.
        table = {"users": list(users), "num_samples": [7] * len(users), "user_data": users}
        (folder / "reddit" / half / f"reddit_0_{half}.json").write_text(json.dumps(table))
    return folder


def tables(folder: Path) -> Path:
    (folder / "reddit").mkdir()
    for half, rows in POSTS.items():
        users, texts = zip(*rows, strict=True)
        pq.write_table(pa.table({"user": users, "text": texts}), folder / "reddit" / f"{half}.parquet")
    return folder


@pytest.mark.parametrize("write", [jsonl, leaf, tables])
def test_reddit_in_all_layouts(tmp_path: Path, write: Any) -> None:
    text = load("reddit", write(tmp_path))
    assert text.vocabulary is not None
    assert text.classes == ("<pad>", "<unk>", "<eos>", "a", "b", "c", "d")
    decode = text.vocabulary.decode

    def samples(part: Samples) -> list[tuple[str, str]]:
        inputs = text.batch(part, slice(None)).tolist()
        return [
            (decode(window).replace("<pad> ", ""), text.classes[target])
            for window, target in zip(inputs, part.targets.tolist(), strict=True)
        ]

    assert samples(text.train) == [
        ("<pad>", "b"), ("b", "b"), ("b b", "c"), ("b b c", "<eos>"),
        ("<pad>", "a"), ("a", "b"), ("a b", "a"), ("a b a", "<eos>"), ("a b a <eos>", "a"),
        ("a b a <eos> a", "d"), ("a b a <eos> a d", "<eos>"),
    ]  # fmt: skip
    assert text.natural["user"].tolist() == [0] * 4 + [1] * 7
    # "new" is unknown: nobody has to predict it.
    assert samples(text.test) == [("<pad>", "a"), ("a", "b"), ("a b <unk>", "<eos>")]
    assert text.shape == (10,)


def test_several_posts_in_one_line_are_told_apart_by_their_ends(tmp_path: Path) -> None:
    posts = {"train": [("u", "a b <eos> c <pad> <eos>")], "test": [("u", "a")]}
    text = load("reddit", jsonl(tmp_path, posts))
    assert [text.classes[target] for target in text.train.targets] == ["a", "b", "<eos>", "c", "<eos>"]


def test_a_posts_words_go_on_beyond_ten(tmp_path: Path) -> None:
    posts = {half: [("u", " ".join(f"w{i:02}" for i in range(25)))] for half in ("train", "test")}
    for folder, write in ((tmp_path / "a", leaf), (tmp_path / "b", jsonl)):
        folder.mkdir()
        text = load("reddit", write(folder, posts))
        assert len(text.train) == 26
        assert text.vocabulary is not None
        assert text.vocabulary.decode(text.batch(text.train, slice(20, 21))[0].tolist()) == " ".join(
            f"w{i:02}" for i in range(10, 20)
        )
        assert text.classes[text.train.targets[20]] == "w20"


def test_the_vocabulary_are_the_most_frequent_words_ties_by_the_alphabet(tmp_path: Path) -> None:
    text = load_reddit(jsonl(tmp_path) / "reddit", True, words=2)
    assert text is not None
    assert text.classes == ("<pad>", "<unk>", "<eos>", "a", "b")
    assert not (text.train.targets == 1).any()
    assert len(text.train) == 11 - 2


@pytest.mark.parametrize("write", [jsonl, leaf])
def test_the_order_of_users_in_a_file_does_not_matter(tmp_path: Path, write: Any) -> None:
    texts = []
    for name, order in (("a", [0, 1, 2]), ("b", [1, 0, 2]), ("c", [0, 2, 1])):
        (tmp_path / name).mkdir()
        posts = {"train": [POSTS["train"][i] for i in order], "test": POSTS["test"]}
        texts.append(load("reddit", write(tmp_path / name, posts)))
    for text in texts[1:]:
        assert text.classes == texts[0].classes
        assert torch.equal(text.batch(text.train, slice(None)), texts[0].batch(texts[0].train, slice(None)))
        assert torch.equal(text.train.targets, texts[0].train.targets)
        assert np.array_equal(text.natural["user"], texts[0].natural["user"])


@pytest.mark.parametrize("write", [jsonl, leaf])
def test_marks_in_small_letters_are_no_words(tmp_path: Path, write: Any) -> None:
    text = load("reddit", write(tmp_path, {"train": [("u", "a <pad> b <unk>")], "test": [("u", "a b")]}))
    assert text.classes == ("<pad>", "<unk>", "<eos>", "a", "b")
    assert [text.classes[target] for target in text.train.targets] == ["a", "b", "<eos>"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.jsonl", '{"user": "a", "text": "b"}\n{"user": "a"}', "line 2: needs an object with the strings user"),
        ("train.jsonl", "nonsense", "line 1: not valid JSON"),
        ("train.jsonl", '["a", "b"]', "line 1: needs an object"),
        ("train.jsonl", "", "there is no word to predict in the train posts"),
        ("train.jsonl", b"\xff\xfe", "not UTF-8 text"),
        ("train/a.json", "{", "not valid JSON"),
        ("train/a.json", "[]", "not a file of LEAF's"),
        ("train/a.json", '{"users": ["u"], "num_samples": [1], "user_data": {}}', "user 'u': user_data needs"),
        (
            "train/a.json",
            '{"users": ["u"], "num_samples": [1], "user_data": {"u": {"x": [[]], "y": [{"z": 1}]}}}',
            r"y\[0\] needs target_tokens",
        ),
        (
            "train/a.json",
            '{"users": ["u"], "num_samples": [1], "user_data": {"u": {"x": [[]], "y": [{"target_tokens": [[3]]}]}}}',
            "words must be strings, got 3",
        ),
        ("train.parquet", b"", "not a readable parquet file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    jsonl(tmp_path)
    (tmp_path / "reddit/train.jsonl").unlink()
    path = tmp_path / "reddit" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        load("reddit", tmp_path)


def test_where_posts_are_missing_the_way_from_the_papers_file_is_told(tmp_path: Path) -> None:
    jsonl(tmp_path)
    (tmp_path / "reddit/test.jsonl").unlink()
    with pytest.raises(DataError, match=r"test/\*\.json or test\.jsonl .* is a pickle, which .* docs/data\.md"):
        load("reddit", tmp_path)
