"""FLCert-D: one model for each of G disjoint groups of clients, and a majority vote; proof in docs/ensembles.md.

Cao, Zhang, Jia, Gong: FLCert: Provably Secure Federated Learning against Poisoning Attacks, IEEE TIFS 2022. Its other
variant, FLCert-P, draws the groups at random: :func:`bezoar.certify.ensemble.sampled_ensemble`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bezoar.certify.votes import Certified, check_counts, leads, majority
from bezoar.errors import ConfigError
from bezoar.seeding import numpy_generator


def disjoint_groups(n: int, groups: int, seed: int) -> list[NDArray[np.int64]]:
    """The clients 0..n-1 dealt to ``groups`` groups whose sizes differ by one at most, ids sorted.

    The paper hashes client ids; the proof asks for no more than that who is in which group does not depend on what
    clients send, and even groups waste none.

    >>> sorted(len(group) for group in disjoint_groups(10, 4, seed=0))
    [2, 2, 3, 3]
    """
    if not 1 <= groups <= n:
        raise ConfigError(f"groups={groups} of n={n} clients: 1..{n} are possible")
    order = numpy_generator(seed, "groups").permutation(n)
    return [np.sort(part).astype(np.int64) for part in np.array_split(order, groups)]


def flcert_d(counts: ArrayLike) -> Certified:
    r"""The certificate of the majority of G models trained on disjoint groups, from their votes ``counts`` [N, C].

    .. math:: m^* = \max\{m : 2 m \le N_y - N_z - [z < y] \text{ for all } z \ne y\}

    Deterministic, against attackers who know the groups, and tight: with m* + 1 malicious clients in groups that vote
    for y, all of which then vote for z, the label changes.

    >>> flcert_d([[6, 3, 1], [3, 6, 1], [5, 5, 0]]).malicious.tolist()
    [1, 1, 0]
    """
    given, _ = check_counts(counts)
    labels = majority(given)
    return Certified(labels, leads(given, labels).min(axis=1) // 2)
