"""What a prior says and allows, against enumeration."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.aggregation import Krum, Mean, TrimmedMean
from bezoar.certify.prior_facts import overlaps, prior_facts, rule_fact, trust
from bezoar.certify.prior_plot import couplings, layout, prior_plot
from bezoar.certify.prior_words import client_table, count_table, record, rule_table, shown, words
from bezoar.errors import ConfigError
from bezoar.priors import Explicit, Family, Groups, HonestPrior, Independent, Ising, Mixture, Subsets
from bezoar.priors.family import merged

TWELVE = Groups((12, 4, 4), (0.1, 0.05, 0.02))


@st.composite
def families(draw: st.DrawFn) -> Family:
    n = draw(st.integers(2, 7))
    codes = draw(st.sets(st.integers(1, 2**n - 1), min_size=1, max_size=9))
    honest = np.array([[code >> i & 1 for i in range(n)] for code in sorted(codes)], dtype=bool)
    return merged(honest, np.log(np.arange(1.0, len(honest) + 1) / sum(range(len(honest) + 1))))


def largest(honest: np.ndarray) -> float:
    worst = 0.0
    for s in honest:
        for t in honest:
            common = (s & t).sum()
            worst = max(worst, math.inf if not common else (s & ~t).sum() / common)
    return worst


@given(families())
@settings(deadline=None, max_examples=60)
def test_overlaps_against_enumeration(family: Family) -> None:
    found = overlaps(family)
    assert found.rho.max() == largest(family.honest)
    s, t = (family.honest[k] for k in found.worst)
    common = (s & t).sum()
    assert found.rho.max() == (math.inf if not common else (s & ~t).sum() / common)
    apart = [k for k, s in enumerate(family.honest) if any(not (s & t).any() for t in family.honest)]
    assert found.disjoint == len(apart)
    assert (found.lost > 0) == bool(apart)


@given(families())
@settings(deadline=None, max_examples=60)
def test_a_trusted_client_is_in_every_set(family: Family) -> None:
    for client, rho in trust(family, most=99):
        trusted = family.honest.copy()
        trusted[:, client] = True
        assert rho == largest(trusted)
        assert rho < math.inf
    known = [client for client, _ in trust(family, most=99)]
    assert not any(family.honest[:, client].all() for client in known)


@pytest.mark.parametrize(
    "prior",
    [
        Independent((0.1, 0.2, 0.9, 0.5)),
        Groups((2, 3), (0.3, 0.6)),
        Groups(labels=("a", "b", "a"), p=0.5, within=0.5),
        Explicit(3, ((0,), (1, 2)), (0.25, 0.75)),
        Subsets(2, clients=5),
        Ising(p=0.3, edges=((0, 1, 0.5), (1, 2, 0.2)), clients=4),
        Mixture((Independent(0.2, 3), Groups((1, 2), 0.5)), (0.25, 0.75)),
    ],
)
def test_chances_against_enumeration(prior: HonestPrior) -> None:
    family = prior.support()
    expected = np.exp(family.log_prob) @ ~family.honest
    exact = prior_facts(prior, delta=0.0)
    assert exact.half == 0
    assert exact.bad == pytest.approx(expected)
    drawn = prior_facts(prior, delta=0.01)
    assert np.abs(drawn.bad - expected).max() <= max(1e-12, 2.5 * drawn.half)
    assert exact.law @ np.arange(prior.n + 1) == pytest.approx(expected.sum())  # type: ignore[operator]


def test_twelve_of_twenty() -> None:
    facts = prior_facts(TWELVE)
    assert facts.family is not None
    assert facts.overlap is not None
    assert dict(facts.quantiles) == {0.5: 0, 0.9: 8, 0.95: 12, 0.99: 12}
    assert len(facts.family) == 3
    assert facts.overlap.rho.max() == 3
    assert facts.threshold == (12, math.inf, math.inf)
    assert facts.mean_rho == pytest.approx(
        np.exp(facts.family.log_prob) @ facts.overlap.rho / np.exp(facts.family.log_prob).sum()
    )
    text = "\n".join(words(facts))
    for part in ("f = 12 covers 95%", "3 candidate sets", "on average and 3 at worst", "f = 12 for the same sets",
                 "If client 0 were trusted", "from 3 to 2.2"):  # fmt: skip
        assert part in text, text


def test_a_threshold_rule_where_there_is_one() -> None:
    facts = prior_facts(Groups((8, 4, 4, 4), 0.05), delta=0.08)
    f, mean, worst = facts.threshold
    assert (f, worst) == (8, 2.0)
    assert mean > facts.mean_rho
    assert "times better on average" in "\n".join(words(facts))
    alike = prior_facts(Explicit(3, ((0,), (1,), (2,)), (0.25, 0.25, 0.5)), delta=0.0)
    assert alike.threshold[1] == pytest.approx(alike.mean_rho)
    assert "SIP promises the same" in "\n".join(words(alike))


def test_impossible_says_which_two() -> None:
    facts = prior_facts(Explicit(4, ((0, 1), (2, 3), ()), (0.3, 0.2, 0.5)), delta=0.0)
    text = "\n".join(words(facts))
    assert "Impossible as it stands: 2 of them" in text
    assert "(bad: 0, 1) and set 2 (bad: 2, 3): no rule can serve both" in text
    assert "leaves 80.00%" in text
    assert "it would become possible, with rho = 2" in text


def test_one_set() -> None:
    text = "\n".join(words(prior_facts(Explicit(4, ((1,),), (1.0,)))))
    assert "There is one candidate set" in text
    assert "trusted" not in text


def test_rules_that_count() -> None:
    facts = prior_facts(TWELVE)
    by_name = {fact.name: fact for fact in facts.rules}
    assert by_name["trimmed-mean"].withstands == 9
    assert by_name["trimmed-mean"].breaks == pytest.approx(facts.law[10:].sum())
    assert by_name["mean"].breaks == pytest.approx(1 - facts.law[0])
    assert [fact.breaks for fact in facts.rules] == sorted(fact.breaks for fact in facts.rules)
    assert rule_fact("own", TrimmedMean(f=4), 20, facts.law).breaks == pytest.approx(facts.law[5:].sum())
    assert rule_fact("own", Mean(), 20, facts.law).withstands == 0
    with pytest.raises(ConfigError, match="f=10 is out of range"):
        rule_fact("own", Krum(f=10), 20, facts.law)


def test_few_clients_and_many() -> None:
    few = {fact.name: fact for fact in prior_facts(Independent(0.1, 2)).rules}
    assert few["bulyan"].withstands is None
    assert few["bulyan"].breaks == 1
    many = prior_facts(Groups((60, 40, 100), 0.1, within=0.7))
    assert many.bad.shape == (200,)
    assert prior_facts(Independent(0.1, 1)).n == 1


@pytest.mark.parametrize("delta", [-0.1, 1.5, float("nan")])
def test_wrong_delta(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta must be a number from 0 to 1"):
        prior_facts(TWELVE, delta)


def test_open_number_of_clients() -> None:
    with pytest.raises(ConfigError, match="of how many clients"):
        prior_facts(Independent(0.1))


def test_tables_and_record() -> None:
    facts = prior_facts(TWELVE)
    own = (rule_fact("mine", TrimmedMean(f=2), 20, facts.law),)
    assert len(client_table(facts).rows) == 20
    counts = count_table(facts)
    assert sum(row[1] for row in counts.rows) == pytest.approx(1)  # type: ignore[misc]
    assert rule_table(facts, own).rows[0][0] == "mine"
    assert len(shown(rule_table(facts, own)).rows) == 24
    found = json.loads(json.dumps(record(facts, own), allow_nan=False))
    assert found["overlap"]["worst_pair"] == [[12, 13, 14, 15], list(range(12))]
    assert found["overlap"]["threshold"]["mean"] is None
    assert sum(found["weights"]) == pytest.approx(1)


def test_clusters_are_the_groups_and_nothing_overlaps() -> None:
    for prior in (Groups((60, 40, 30, 20, 20, 10, 10, 5, 2, 1, 1, 1), 0.1, within=0.7), TWELVE, Independent(0.1, 4)):
        ties = couplings(prior, 0)
        places, clusters = layout(ties)
        assert sorted(np.concatenate([part for part, *_ in clusters]).tolist()) == list(range(len(places)))
        gaps = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 9 * np.eye(len(places))
        assert gaps.min() > 0.6
        for i, (_, a, r, _) in enumerate(clusters):
            for _, b, s, _ in clusters[:i]:
                assert np.hypot(*(a - b)) > r + s
    _, clusters = layout(couplings(TWELVE, 0))
    assert sorted(len(part) for part, *_ in clusters) == [4, 4, 12]
    assert all(full for *_, full in clusters)


def test_a_graph_is_drawn_from_its_edges() -> None:
    class Ring(Independent):
        edges = tuple((i, (i + 1) % 12, 0.5) for i in range(12))

    ties = couplings(Ring(0.2, 12), 0)
    assert (ties > 0).sum() == 24
    places, clusters = layout(ties)
    assert len(clusters) == 1
    assert not clusters[0][3]
    near = np.hypot(*(places - np.roll(places, 1, 0)).T)
    across = np.hypot(*(places - np.roll(places, 6, 0)).T)
    assert near.max() < across.min()
    assert np.array_equal(places, layout(ties)[0])


@pytest.mark.parametrize("prior", [Independent(0.0, 4), Groups((2, 2), 1.0, within=0.5)])
def test_pictures_of_extreme_priors(prior: HonestPrior, tmp_path: Path) -> None:
    files = prior_plot(prior_facts(prior)).write(tmp_path)
    assert all(file.stat().st_size > 5000 for file in files)
