r"""Certificates of an ensemble whose models are trained on subsets of the clients; proofs in docs/ensembles.md.

A model that saw no malicious client votes as it would without any. So m malicious clients change the votes of the
models they touch, and of no others, whatever they do.

Cao, Jia, Gong: Provably Secure Federated Learning against Malicious Clients, AAAI 2021; with sampled subsets it is
FLCert-P of Cao, Zhang, Jia, Gong: FLCert, IEEE TIFS 2022.
"""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bezoar.certify.votes import (
    ABSTAINED,
    Certified,
    Counts,
    check_counts,
    check_votes,
    count_votes,
    label_bounds,
    leads,
    majority,
)
from bezoar.errors import ConfigError
from bezoar.seeding import numpy_generator

if TYPE_CHECKING:
    from scipy.sparse import csr_array

#: More subsets than this are not enumerated.
MOST_SUBSETS = 100_000

#: Kinds of clients times points that are looked at together: 8 MB of numbers.
_BLOCK = 1_000_000

#: With so many kinds of clients, those in the most groups, the search for the worst begins.
_FIRST_KINDS = 64


def touched(n: int, k: int, m: int) -> int:
    """How many of the k-subsets of n clients contain at least one of m given clients: C(n, k) - C(n - m, k), exactly.

    >>> touched(5, 2, 1), round(touched(1000, 10, 20) / math.comb(1000, 10), 4)
    (4, 0.1837)
    """
    n, k = _sizes(n, k)
    if not 0 <= m <= n:
        raise ConfigError(f"m={m} malicious of n={n} clients: 0..{n} are possible")
    return math.comb(n, k) - math.comb(n - operator.index(m), k)


def _sizes(n: int, k: int) -> tuple[int, int]:
    """``n`` and ``k`` as integers of any length: NumPy's would overflow unnoticed."""
    n, k = operator.index(n), operator.index(k)
    if not 1 <= k <= n:
        raise ConfigError(f"subsets of k={k} of n={n} clients: k must be in 1..{n}")
    return n, k


def _shown(count: int) -> str:
    """A count in words, however long."""
    return str(count) if count < 10**9 else f"about 10^{int(math.log10(count))}"


def _costs(n: int, k: int) -> list[int]:
    """What m = 0, 1, ... malicious clients can take off a lead, 2 (C(n, k) - C(n - m, k)), until it is everything."""
    n, k = _sizes(n, k)
    total = left = math.comb(n, k)
    costs, m = [0], 0
    while costs[-1] <= total and m < n:
        left = left * (n - m - k) // (n - m) if n - m > k else 0
        m += 1
        costs.append(2 * (total - left))
    return costs


def all_subsets(n: int, k: int) -> list[NDArray[np.int64]]:
    """Every k-subset of the clients 0..n-1, in lexicographic order. Raises ConfigError for too many of them."""
    n, k = _sizes(n, k)
    if math.comb(n, k) > MOST_SUBSETS:
        raise ConfigError(
            f"there are {_shown(math.comb(n, k))} subsets of {k} of {n} clients, more than {MOST_SUBSETS}: sample them"
        )
    return [np.array(subset, dtype=np.int64) for subset in itertools.combinations(range(n), k)]


def random_subsets(n: int, k: int, models: int, seed: int) -> list[NDArray[np.int64]]:
    """``models`` k-subsets of the clients 0..n-1, each drawn uniformly and independently of the others (a subset may
    come twice: the bounds of :func:`sampled_ensemble` count on it), sorted."""
    n, k = _sizes(n, k)
    if models < 1:
        raise ConfigError(f"models must be at least 1, got {models}")
    draws: Iterator[np.random.Generator] = (numpy_generator(seed, "subset", i) for i in range(models))
    return [np.sort(rng.choice(n, k, replace=False)).astype(np.int64) for rng in draws]


def exact_ensemble(counts: ArrayLike, n: int, k: int) -> Certified:
    r"""The certificate of the majority over all C(n, k) subsets, from its votes ``counts`` [N, C].

    .. math:: N_y - N_z > 2 \left[\binom nk - \binom{n-m}k\right] \quad \text{for all } z \ne y

    with >= where the tie goes to y (lower index). Given the counts alone, no certificate promises more.

    Raises ConfigError if a point has another number of votes than there are subsets.

    >>> exact_ensemble([[10, 0], [8, 2]], n=10, k=1).malicious.tolist()
    [5, 3]
    """
    given, total = check_counts(counts)
    n, k = _sizes(n, k)
    if total != math.comb(n, k):
        raise ConfigError(
            f"{total} votes a point, but {n} clients have {_shown(math.comb(n, k))} subsets of {k}: give all"
        )
    labels = majority(given)
    costs = _costs(n, k)
    least = leads(given, labels).min(axis=1).tolist()
    return Certified(labels, np.array([bisect.bisect_right(costs, lead) - 1 for lead in least], dtype=np.int64))


def sampled_ensemble(counts: ArrayLike, n: int, k: int, *, alpha: float = 0.001, joint: bool = True) -> Certified:
    r"""The certificate of the majority over all C(n, k) subsets, from the votes of independently drawn ones.

    .. math:: \underline p_y - \overline p_z > 2 - 2 \binom{n-m}k \Big/ \binom nk \quad \text{for all } z \ne y

    Shares are multiples of 1 / C(n, k), so the bounds are rounded to such (in exact integers). All statements hold
    together with probability 1 - alpha over the draw of the subsets: for all points if ``joint``, else for each point
    by itself. **The malicious clients must have been chosen without knowledge of the draw**, and what is certified is
    the label of the ensemble of all subsets; for attackers who know it, see :func:`fixed_groups`.

    Args:
        counts: votes [N, C] of subsets drawn with :func:`random_subsets`.
        n: number of clients.
        k: size of the subsets.
        alpha: probability that any of it is wrong.
        joint: one alpha for all points together.
    """
    given, _ = check_counts(counts)
    n, k = _sizes(n, k)
    labels = majority(given)
    least, most = label_bounds(given, labels, alpha, joint)
    total, costs = math.comb(n, k), _costs(n, k)
    malicious = np.full(len(given), ABSTAINED, dtype=np.int64)
    for i, label in enumerate(labels.tolist()):
        lower = math.ceil(Fraction(float(least[i])) * total)
        lead = min(
            lower - math.floor(Fraction(float(share)) * total) - (rival < label)
            for rival, share in enumerate(most[i])
            if rival != label
        )
        malicious[i] = bisect.bisect_right(costs, lead) - 1
    return Certified(np.where(malicious < 0, ABSTAINED, labels), malicious, 1 - alpha)


@dataclass(frozen=True, eq=False)
class _Kinds:
    """Clients that are in the same groups are of one kind: P kinds, those in the most groups first.

    ``member`` [P, S] says who is in which group, ``degree`` [P] in how many, ``times`` [P] how many such clients
    there are. Clients of no group are left out.
    """

    member: csr_array
    degree: Counts
    times: Counts

    @classmethod
    def of(cls, groups: Sequence[ArrayLike], n: int) -> _Kinds:
        members = []
        for j, group in enumerate(groups):
            ids = np.asarray(group)
            if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= n:
                raise ConfigError(f"group {j} must be ids of clients in 0..{n - 1}, at least one")
            ids = np.sort(ids.astype(np.int64))
            members.append(ids[np.diff(ids, prepend=-1) > 0])
        clients = np.concatenate(members)
        places = np.repeat(np.arange(len(groups), dtype=np.int32), [len(ids) for ids in members])
        # A stable sort: the groups of a client stay in order.
        places = places[np.argsort(clients, kind="stable")]
        degrees = np.bincount(clients, minlength=n)
        starts = np.cumsum(degrees) - degrees
        inside: list[Counts] = []
        degree: list[Counts] = []
        times: list[Counts] = []
        for d in np.unique(degrees[degrees > 0])[::-1].tolist():
            rows = places[starts[degrees == d][:, None] + np.arange(d)]
            kinds, count = np.unique(rows.view(np.dtype((np.void, rows.itemsize * d))).reshape(-1), return_counts=True)
            inside.append(kinds.view(np.int32))
            degree.append(np.full(len(kinds), d, dtype=np.int64))
            times.append(count)
        from scipy.sparse import csr_array

        columns, falling = np.concatenate(inside), np.concatenate(degree)
        pointers = np.concatenate([[0], np.cumsum(falling)])
        member = csr_array((np.ones(len(columns), dtype=np.int64), columns, pointers), (len(falling), len(groups)))
        return cls(member, falling, np.concatenate(times))


def _held(loads: Counts, times: Counts, lead: Counts, rest: int) -> tuple[Counts, Counts]:
    """How many clients can be malicious before their loads spend the ``lead`` [Q]: the least and the most [Q].

    ``loads`` [P, Q] are those of P kinds with ``times`` [P] clients each; there may be others with loads up to
    ``rest`` (0: there are none, and all together spend every lead).
    """
    order = np.argsort(-loads, axis=0, kind="stable")
    loads, number = np.take_along_axis(loads, order, axis=0), times[order]
    nothing = np.zeros((1, loads.shape[1]), dtype=np.int64)
    spent = np.concatenate([nothing, np.cumsum(loads * number, axis=0)])
    taken = np.concatenate([nothing, np.cumsum(number, axis=0)])
    fit, above = (spent[1:] <= lead).sum(axis=0), (loads > rest).sum(axis=0)
    columns = np.arange(loads.shape[1])

    def until(kinds: Counts, load: Counts | int) -> Counts:
        """The first ``kinds`` [Q] whole, then as many clients with that ``load`` as there is lead left for."""
        found: Counts = taken[kinds, columns] + (lead - spent[kinds, columns]) // np.maximum(load, 1)
        return found

    next_load = loads[np.minimum(fit, len(loads) - 1), columns]
    most = np.where(fit < len(loads), until(fit, next_load), np.iinfo(np.int64).max)
    return np.where(fit < above, most, until(np.minimum(fit, above), rest)), most


def fixed_groups(votes: ArrayLike, groups: Sequence[ArrayLike], n: int, classes: int) -> Certified:
    r"""The certificate of the majority of exactly these models, against attackers who know who is in which group.

    .. math:: \max_{|B| = m} \sum_{i \in B} \; \sum_{j:\, i \in T_j} w_j(z) \;\le\; N_y - N_z - [z < y],
        \qquad w_j(z) = 1 + [h_j = y] - [h_j = z]

    A touched model can cost the label y at most w_j of its lead over z. Clients that share a group are counted twice,
    so the truth may be better; for disjoint groups it is exact (FLCert-D). No chance is involved.

    Args:
        votes: the class [S, N] that each of S models gives to N points.
        groups: the clients of each model, S arrays of ids.
        n: number of clients.
        classes: number of classes C.

    >>> fixed_groups([[0], [0], [0], [1]], [[0, 1], [2, 3], [4, 5], [6, 7]], n=8, classes=2).malicious.tolist()
    [1]
    """
    given = check_votes(votes, classes)
    if len(groups) != len(given):
        raise ConfigError(f"{len(given)} models vote, but there are {len(groups)} groups")
    kinds = _Kinds.of(groups, n)
    counts = count_votes(given, classes)
    labels = majority(counts)
    lead = leads(counts, labels)
    malicious = np.full(len(labels), n, dtype=np.int64)
    for rival in range(classes):
        todo, size = np.flatnonzero(labels != rival), _FIRST_KINDS
        # Only those in the most groups matter, mostly: nobody's load is more than twice the number of its groups.
        while len(todo):
            size = min(size, len(kinds.degree))
            rest = 2 * int(kinds.degree[size]) if size < len(kinds.degree) else 0
            member = kinds.member[:size]
            step, unsettled = max(1, _BLOCK // max(size, len(given))), []
            for part in np.split(todo, range(step, len(todo), step)):
                weight = 1 + (given[:, part] == labels[part]).astype(np.int64) - (given[:, part] == rival)
                least, most = _held(member @ weight, kinds.times[:size], lead[part, rival], rest)
                # Their other rivals may have settled them already.
                malicious[part] = np.minimum(malicious[part], most)
                unsettled.append(part[least < malicious[part]])
            todo, size = np.concatenate(unsettled), 4 * size
    return Certified(labels, malicious)
