from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.data import (
    PARTITIONS,
    Dataset,
    Dirichlet,
    EpochSampling,
    Federation,
    Iid,
    Natural,
    OneClass,
    Partition,
    Samples,
    Similarity,
    Sorted,
    load,
    partition,
)
from bezoar.errors import ConfigError


def labelled(labels: np.ndarray, classes: int, groups: np.ndarray | None = None) -> Dataset:
    samples = Samples(torch.zeros(len(labels), 1), torch.from_numpy(labels.astype(np.int64)))
    natural = {} if groups is None else {"writer": groups}
    names = tuple(f"c{k}" for k in range(classes))
    return Dataset("toy", samples, samples, names, (0.0,), (1.0,), natural, scale=1.0)


def balanced(classes: int, per_class: int) -> Dataset:
    return labelled(np.random.default_rng(0).permutation(np.repeat(np.arange(classes), per_class)), classes)


BIG = balanced(10, 6_000)
SEEDED: list[Partition] = [
    Iid(7),
    Iid(7, samples=5),
    OneClass(9, 4),
    Dirichlet(7, 0.1),
    Dirichlet(30, 0.05, min_samples=3),
    Similarity(7, 0.5),
    Sorted(7),
]


def labels_of(federation: Federation, client: int) -> np.ndarray:
    return federation.dataset.train.targets.numpy()[federation.client(client)]


@pytest.mark.parametrize("kind", SEEDED, ids=repr)
def test_same_seed_same_division_other_seed_another(kind: Partition) -> None:
    data = balanced(5, 40)
    first, again, other = (partition(data, kind, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.indices, again.indices)
    assert np.array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.indices, other.indices)


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    clients=st.integers(1, 20),
    seed=st.integers(0, 2**40),
    alpha=st.floats(1e-4, 1e4),
    gamma=st.floats(0, 1),
    least=st.integers(0, 3),
    name=st.sampled_from(["iid", "dirichlet", "similarity", "sorted"]),
)
def test_every_sample_has_one_owner_and_every_client_enough(
    labels: list[int], clients: int, seed: int, alpha: float, gamma: float, least: int, name: str
) -> None:
    data = labelled(np.array(labels), 5)
    kind: Partition = {
        "iid": Iid(clients, min_samples=least),
        "dirichlet": Dirichlet(clients, alpha, least),
        "similarity": Similarity(clients, gamma),
        "sorted": Sorted(clients),
    }[name]
    needed = clients * (least if name in ("iid", "dirichlet") else 1)
    if needed > len(labels):
        with pytest.raises(ConfigError, match=f"clients={clients}.*has {len(labels)}"):
            partition(data, kind, seed)
        return
    federation = partition(data, kind, seed)
    assert federation.n == clients
    assert sorted(federation.indices.tolist()) == list(range(len(labels)))
    assert federation.counts().min() >= needed // clients
    if name != "dirichlet":
        assert np.ptp(federation.counts()) <= 1


@settings(max_examples=80, deadline=None)
@given(classes=st.integers(1, 5), clients=st.integers(1, 30), samples=st.integers(1, 6), seed=st.integers(0, 99))
def test_one_class_is_disjoint_balanced_and_pure_or_refused_exactly(
    classes: int, clients: int, samples: int, seed: int
) -> None:
    labels = np.concatenate([np.full(10 + 3 * k, k) for k in range(classes)])
    data = labelled(labels, classes)
    per_class = np.bincount(np.arange(clients) % classes, minlength=classes)
    if (per_class * samples > np.bincount(labels)).any():
        with pytest.raises(ConfigError, match=f"clients={clients} with samples={samples}"):
            partition(data, OneClass(clients, samples), seed)
        return
    federation = partition(data, OneClass(clients, samples), seed)
    assert (federation.counts() == samples).all()
    assert len(set(federation.indices.tolist())) == clients * samples
    for client in range(clients):
        assert set(labels_of(federation, client)) == {client % classes}


def test_one_class_error_says_what_is_possible() -> None:
    data = labelled(np.repeat([0, 1, 2], [50, 20, 50]), 3)
    with pytest.raises(ConfigError, match=r"class 'c1'.*has 20: at most 16 clients with samples=4, .*samples=2$"):
        partition(data, OneClass(30, 4), 0)
    assert partition(data, OneClass(16, 4), 0).n == 16
    assert partition(data, OneClass(30, 2), 0).n == 30
    with pytest.raises(ConfigError, match="at most 16 clients"):
        partition(data, OneClass(17, 4), 0)


def test_the_paper_setting_of_ten_thousand_one_class_clients() -> None:
    federation = partition(BIG, OneClass(10_000, 6), 0)
    labels = BIG.train.targets.numpy()[federation.indices].reshape(10_000, 6)
    assert (labels == labels[:, :1]).all()
    assert (np.bincount(labels[:, 0]) == 1_000).all()
    assert len(np.unique(federation.indices)) == 60_000


def test_iid_with_samples_and_what_is_possible() -> None:
    federation = partition(BIG, Iid(100, samples=50), 0)
    assert (federation.counts() == 50).all()
    assert np.unique(federation.indices).size == 5_000
    with pytest.raises(ConfigError, match="at most 1200 clients or 6 samples each"):
        partition(BIG, Iid(10_000, samples=50), 0)
    with pytest.raises(ConfigError, match="at most 60000 clients"):
        partition(BIG, Iid(60_001), 0)
    assert partition(BIG, Iid(60_001, min_samples=0), 0).counts().sum() == 60_000


def test_dirichlet_shares_have_the_moments_of_the_distribution() -> None:
    alpha, clients = 0.5, 20
    shares = np.concatenate(
        [
            np.stack([np.bincount(labels_of(f, i), minlength=10) for i in range(clients)]).ravel() / 6_000
            for f in (partition(BIG, Dirichlet(clients, alpha, 0), seed) for seed in range(10))
        ]
    )
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert shares.mean() == pytest.approx(1 / clients)
    assert shares.var() == pytest.approx(expected, rel=0.2)


def test_dirichlet_with_large_alpha_is_even_and_with_tiny_alpha_still_covers_everything() -> None:
    even = partition(BIG, Dirichlet(10, 1e9), 0)
    assert np.ptp(even.counts()) <= 20
    rough = partition(BIG, Dirichlet(10, 1e-6, 0), 0)
    assert rough.counts().sum() == 60_000
    assert (rough.counts() == 0).any()


def test_dirichlet_tops_up_from_the_largest_clients_only() -> None:
    before = partition(BIG, Dirichlet(1_000, 0.01, 0), 3)
    after = partition(BIG, Dirichlet(1_000, 0.01, 20), 3)
    counts, changed = before.counts(), after.counts()
    gave, got = changed < counts, changed > counts
    assert (changed[got] == 20).all()
    assert (counts[got] < 20).all()
    assert np.ptp(changed[gave]) <= 1
    assert changed[gave].min() >= changed[~gave].max() - 1
    for client in np.flatnonzero(~gave):
        assert set(before.client(client)) <= set(after.client(client))


def test_similarity_one_is_iid_and_zero_is_sorted() -> None:
    data = balanced(5, 40)
    extreme = partition(data, Similarity(5, 0.0), 0)
    assert all(set(labels_of(extreme, i)) == {i} for i in range(5))
    assert all(set(labels_of(partition(data, Sorted(5), 0), i)) == {i} for i in range(5))
    mixed = partition(data, Similarity(5, 0.5), 0)
    assert all(np.bincount(labels_of(mixed, i), minlength=5)[i] >= 15 for i in range(5))
    assert all(len(set(labels_of(mixed, i))) == 5 for i in range(5))
    assert all(len(set(labels_of(partition(data, Similarity(5, 1.0), 0), i))) == 5 for i in range(5))


def test_natural_keeps_groups_together_and_leaves_small_ones_out() -> None:
    groups = np.array([30, 7, 30, 9, 30, 7])
    data = labelled(np.zeros(6), 1, groups)
    federation = partition(data, Natural("writer"), 0)
    assert [federation.client(i).tolist() for i in range(3)] == [[1, 5], [3], [0, 2, 4]]
    federation = partition(data, Natural("writer", min_samples=2), 0)
    assert [federation.client(i).tolist() for i in range(2)] == [[1, 5], [0, 2, 4]]
    with pytest.raises(ConfigError, match="largest writer has 3"):
        partition(data, Natural("writer", min_samples=4), 0)
    with pytest.raises(ConfigError, match="did you mean 'writer'"):
        partition(data, Natural("writers"), 0)
    with pytest.raises(ConfigError, match="no natural groups"):
        partition(BIG, Natural("writer"), 0)


def test_natural_splits_every_group_into_devices() -> None:
    groups = np.random.default_rng(0).integers(0, 12, 400) ** 2
    data = labelled(np.zeros(400), 1, groups)
    federation = partition(data, Natural("writer", split=7), 0)
    names, sizes = np.unique(groups, return_counts=True)
    assert federation.n == 12 * 7
    assert sorted(federation.indices.tolist()) == list(range(400))
    for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
        devices = federation.counts()[7 * i : 7 * i + 7]
        assert devices.sum() == size
        assert np.ptp(devices) <= 1
        rows, _ = federation.samples_of(np.arange(7 * i, 7 * i + 7))
        assert (groups[rows] == name).all()
        assert rows.tolist() != sorted(rows.tolist())
    again, other = (partition(data, Natural("writer", split=7), seed) for seed in (0, 1))
    assert np.array_equal(federation.indices, again.indices)
    assert not np.array_equal(federation.indices, other.indices)


def test_devices_keep_min_samples_and_small_groups_become_fewer() -> None:
    groups = np.repeat([3, 4, 5, 6], [23, 8, 3, 9])
    federation = partition(labelled(np.zeros(43), 1, groups), Natural("writer", min_samples=4, split=5), 0)
    assert federation.counts().tolist() == [5, 5, 5, 4, 4, 4, 4, 5, 4]
    assert [int(groups[federation.client(i)[0]]) for i in range(9)] == [3, 3, 3, 3, 3, 4, 4, 6, 6]
    assert not set(federation.indices.tolist()) & set(range(31, 34))
    federation = partition(labelled(np.zeros(43), 1, groups), Natural("writer", split=100), 0)
    assert federation.counts().tolist() == [1] * 43


def test_experiments_without_devices_keep_their_hashes() -> None:
    assert PARTITIONS.table(Natural("writer")) == {"kind": "natural", "column": "writer", "min_samples": 1}
    split = Natural("writer", split=10)
    assert PARTITIONS.table(split)["split"] == 10
    assert PARTITIONS.build(PARTITIONS.table(split)) == split


def test_the_writers_of_mnist_as_5390_devices_each_used_once_an_epoch(data_dir: Path) -> None:
    mnist = load("mnist", data_dir)
    federation = partition(mnist, Natural("writer", split=10), 0)
    assert federation.n == 5_390
    assert federation.counts().sum() == 60_000
    for user in (0, 100, 538):
        rows, owners = federation.samples_of(np.arange(10 * user, 10 * user + 10))
        assert len(set(mnist.natural["writer"][rows].tolist())) == 1
        assert np.ptp(np.bincount(owners - 10 * user)) <= 1
    sampling = EpochSampling(35)
    rounds = sampling.rounds_per_epoch(federation.n)
    drawn = np.concatenate([sampling.draw(federation.n, t, 0) for t in range(rounds)])
    assert rounds == 154
    assert sorted(drawn.tolist()) == list(range(5_390))


def test_samples_of_joins_clients_in_the_order_given() -> None:
    federation = Federation(balanced(2, 5), np.array([0, 2, 2, 5, 6]), np.array([9, 8, 3, 4, 5, 0]))
    rows, owners = federation.samples_of([2, 0, 1])
    assert rows.tolist() == [3, 4, 5, 9, 8]
    assert owners.tolist() == [2, 2, 2, 0, 0]
    rows, owners = federation.samples_of(np.array([], dtype=np.int64))
    assert rows.tolist() == owners.tolist() == []
    with pytest.raises(ConfigError, match="client 4 does not exist"):
        federation.samples_of([1, 4])
    with pytest.raises(ConfigError, match="client -1 does not exist"):
        federation.client(-1)


@pytest.mark.parametrize(
    ("offsets", "indices", "words"),
    [
        ([0, 2], [1, 1], "one client only"),
        ([0, 2], [1, 10], "rows of the 10"),
        ([0, 3, 2], [1, 2], "rise"),
        ([1, 2], [1, 2], "rise"),
        ([0], [], "rise"),
    ],
)
def test_federation_refuses_arrays_that_are_no_division(offsets: list[int], indices: list[int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Federation(balanced(2, 5), np.array(offsets), np.array(indices, dtype=np.int64))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dirichlett", {}, "did you mean 'dirichlet'"),
        ("iid", {"client": 3}, "did you mean 'clients'"),
        ("dirichlet", {"clients": 3}, "needs the parameter 'alpha'"),
        ("iid", {"clients": 0}, "clients must be at least 1"),
        ("iid", {"clients": True}, "clients"),
        ("iid", {"clients": 2.0}, "clients"),
        ("iid", {"clients": 3, "samples": 0}, "samples must be at least 1"),
        ("one-class", {"clients": 3, "samples": "6"}, "samples"),
        ("dirichlet", {"clients": 3, "alpha": 0.0}, "alpha must be above 0"),
        ("dirichlet", {"clients": 3, "alpha": float("nan")}, "alpha must be above 0"),
        ("dirichlet", {"clients": 3, "alpha": float("inf")}, "alpha must be above 0"),
        ("dirichlet", {"clients": 3, "alpha": 1, "min_samples": -1}, "min_samples must be at least 0"),
        ("similarity", {"clients": 3, "gamma": 1.5}, "gamma must be at least 0 and at most 1"),
        ("natural", {"column": 3}, "column"),
        ("natural", {"column": "writer", "min_samples": 0}, "min_samples must be at least 1"),
        ("natural", {"column": "writer", "split": 0}, "split must be at least 1"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PARTITIONS.build({"kind": name, **options})


def test_every_kind_is_registered_with_a_summary() -> None:
    assert list(PARTITIONS) == ["iid", "one-class", "dirichlet", "similarity", "sorted", "natural"]
    assert all(entry.summary for entry in PARTITIONS.entries())


@pytest.mark.parametrize("kind", [Iid(100_000, min_samples=0), Dirichlet(100_000, 0.1, 0)], ids=repr)
def test_a_hundred_thousand_clients_are_cheap(kind: Partition) -> None:
    start = time.perf_counter()
    federation = partition(BIG, kind, 0)
    assert time.perf_counter() - start < 2.0
    assert federation.n == 100_000
    assert federation.offsets.nbytes + federation.indices.nbytes < 2**21
