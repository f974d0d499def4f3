"""The cheap answers of the probe against whole aggregations of the rows themselves."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from bezoar.aggregation import (
    ARC,
    CAF,
    CVA,
    FABA,
    FLAME,
    MDA,
    MVA,
    NNM,
    SMEA,
    BayesMean,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clip,
    ClippedClustering,
    Context,
    DnC,
    FilterL2,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    Krum,
    MeaMed,
    Mean,
    Median,
    MoNNA,
    MultiKrum,
    Rule,
    SignGuard,
    SignVote,
    TrimmedMean,
)
from bezoar.attacks import OptimisedALIE
from bezoar.attacks._probe import Probe, column_spread
from bezoar.attacks.base import AttackContext, standalone
from bezoar.errors import HostileRowsError
from bezoar.updates import DenseUpdates

EXACT: list[Rule] = [
    Mean(),
    Krum(f=2),
    MultiKrum(f=2),
    GeometricMedian(),
    MDA(f=2),
    MVA(f=2),
    SMEA(f=2),
    CAF(f=2),
    FABA(f=2),
    FilterL2(f=2),
    BayesMean(),
    ClippedClustering(),
    FLAME(noise=0.0),
    MoNNA(f=2, trusted=3),
    CVA(f=2),
    CenteredClipping(radius=2.0),
    CenteredClipping(radius=3.0, iterations=1),
    FLTrust(),
    Clip(3.0) >> Mean(),
    ARC(f=2) >> GeometricMedian(),
    NNM(f=2) >> Krum(f=2),
    Clip(6.0) >> NNM(f=2) >> MultiKrum(f=2),
    Bucketing(s=2) >> GeometricMedian(),
    Mean(weighted=True),
]

COLUMNWISE: list[Rule] = [
    Median(),
    TrimmedMean(f=2),
    MeaMed(f=2),
    SignVote(scale=0.3),
    Bulyan(f=2),
    DnC(f=2),
    SignGuard(),
    TrimmedMean(f=2, weighted=True),
    Clip(6.0) >> NNM(f=2) >> TrimmedMean(f=2),
    ARC(f=2) >> Median(),
]

WHOLE: list[Rule] = [FoolsGold(), CVA(f=2, pivot=Median())]


def name(rule: Rule) -> str:
    return f"{rule.name}-{rule.weighted}"


def cohort(d: int = 40, h: int = 10, seed: int = 0) -> DenseUpdates:
    draws = torch.Generator().manual_seed(seed)
    rows = 0.4 + torch.randn(h, d, generator=draws, dtype=torch.float64) * torch.linspace(0.2, 1.5, d)
    return DenseUpdates(rows, torch.tensor([0, 1, 3, 4, 6, 7, 8, 10, 11, 12][:h]))


def known(view: DenseUpdates, q: int = 2) -> AttackContext:
    draws = torch.Generator().manual_seed(5)
    d, n = view.shape[1], len(view) + q
    server = Context(
        round=3,
        model=torch.randn(d, generator=draws, dtype=torch.float64),
        root_gradient=0.3 + torch.randn(d, generator=draws, dtype=torch.float64),
        last_aggregate=0.3 + 0.1 * torch.randn(d, generator=draws, dtype=torch.float64),
        client_weights=1 + torch.rand(n, generator=draws, dtype=torch.float64),
    )
    plain = standalone(view, n, q, seed=4)
    return dataclasses.replace(plain, clients=torch.tensor([2, 9, 5, 13][:q]).sort().values, server_context=server)


def mixes(probe: Probe, count: int = 12) -> list[Tensor]:
    """Rows near and far, equal or one for each attacker, an honest row, the mean and a vector."""
    draws = torch.Generator().manual_seed(9)
    q = len(probe.context.clients)
    found = [probe.mean, probe.unit(0), probe.mean - 40 * probe.unit(1), 0.3 * probe.unit(0)]
    one = torch.zeros_like(probe.mean)
    one[2] = 1.0
    found.append(one)
    while len(found) < count:
        noise = torch.randn(q, probe.span, generator=draws, dtype=torch.float64)
        size = 10 ** (2 * torch.rand(1, generator=draws, dtype=torch.float64) - 1.5)
        mix = probe.mean + size * noise
        found.append(mix if len(found) % 2 else mix[0])
    return found


def oracle(view: DenseUpdates, vectors: Tensor, rule: Rule, at: AttackContext, mix: Tensor) -> float:
    """The distance measured on dense rows, put in the order of client ids by hand."""
    rows = torch.cat([view.values, vectors])
    finite = torch.isfinite(rows).all(1)
    sent = mix.expand(len(at.clients), -1)[:, finite] @ rows[finite]
    ids = view.clients.tolist() + at.clients.tolist()
    everyone = torch.cat([view.values, sent])
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    stacked = DenseUpdates(everyone[order], torch.tensor(sorted(ids)))
    from bezoar.seeding import generator

    draws = generator(at.seed, "probe", at.round)
    try:
        answer = rule.aggregate(stacked, dict(at.rule_state), at.server_context, draws).vector
    except HostileRowsError:
        return 0.0
    honest = view.values[torch.isfinite(view.values).all(1)]
    return float((answer - honest.mean(0)).norm())


def directions(view: DenseUpdates) -> Tensor:
    draws = torch.Generator().manual_seed(6)
    honest = DenseUpdates(view.values[torch.isfinite(view.values).all(1)])
    return torch.stack([column_spread(honest), torch.randn(view.shape[1], generator=draws, dtype=torch.float64)])


@pytest.mark.parametrize("rule", EXACT, ids=name)
def test_rules_of_inner_products_are_asked_exactly(rule: Rule) -> None:
    view = cohort()
    at, vectors = known(view), directions(view)
    probe = Probe(view, vectors, rule, at)
    assert probe.method == "exact"
    for mix in mixes(probe):
        assert probe.deviation(mix) == pytest.approx(oracle(view, vectors, rule, at, mix), rel=1e-7, abs=1e-9)
    assert probe.aggregations == 0


@pytest.mark.parametrize("rule", COLUMNWISE, ids=name)
def test_on_all_columns_rules_that_read_columns_are_asked_exactly(rule: Rule) -> None:
    view = cohort()
    at, vectors = known(view), directions(view)
    probe = Probe(view, vectors, rule, at)
    assert probe.method == "sampled"
    for mix in mixes(probe):
        assert probe.deviation(mix) == pytest.approx(oracle(view, vectors, rule, at, mix), rel=1e-7, abs=1e-9)
    assert probe.aggregations == 0


@pytest.mark.parametrize("rule", WHOLE, ids=name)
def test_other_rules_are_asked_on_the_rows_themselves(rule: Rule) -> None:
    view = cohort()
    at, vectors = known(view), directions(view)
    probe = Probe(view, vectors, rule, at)
    assert not probe.cheap
    for mix in mixes(probe):
        assert probe.deviation(mix) == pytest.approx(oracle(view, vectors, rule, at, mix), rel=1e-7, abs=1e-9)
    assert probe.aggregations == 12


@pytest.mark.parametrize(
    "rule",
    [Median(), TrimmedMean(f=2), Clip(60.0) >> NNM(f=2) >> TrimmedMean(f=2), SignVote(scale=0.3)],
    ids=name,
)
@pytest.mark.parametrize("weighed", [False, True])
def test_a_sample_of_columns_estimates_the_deviation(rule: Rule, weighed: bool) -> None:
    view = cohort(d=20000)
    at, vectors = known(view), directions(view)
    importance = vectors[0].square() if weighed else None
    probe = Probe(view, vectors, rule, at, importance=importance, sample=2000)
    for mix in mixes(probe, 7):
        assert probe.deviation(mix) == pytest.approx(oracle(view, vectors, rule, at, mix), rel=0.08, abs=1e-9)


def test_importance_finds_the_few_columns_that_matter() -> None:
    d, h = 30000, 10
    size = torch.full((d,), 1e-3, dtype=torch.float64)
    size[777] = 50.0
    view = DenseUpdates(size * torch.randn(h, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    at = standalone(view, 12, 2)
    vectors = column_spread(view)[None]
    probe = Probe(view, vectors, Median(), at, importance=vectors[0].square(), sample=500)
    mix = probe.mean + 5 * probe.unit(0)
    assert probe.deviation(mix) == pytest.approx(oracle(view, vectors, Median(), at, mix), rel=0.02)


def test_weights_make_the_deviation_exact_though_only_a_sample_is_seen() -> None:
    view = cohort(d=3000)
    at, vectors = known(view), directions(view)
    rule = SignGuard(share=1.0)
    probe = Probe(view, vectors, rule, at, sample=1000)
    mix = probe.mean + 0.05 * probe.unit(1)
    assert probe.deviation(mix) == pytest.approx(oracle(view, vectors, rule, at, mix), rel=1e-7)


@pytest.mark.parametrize("rule", [Krum(f=3), CenteredClipping(radius=2.0), TrimmedMean(f=3), FoolsGold(), Mean()])
def test_hostile_honest_rows(rule: Rule) -> None:
    view = cohort()
    values = view.values.clone()
    values[4, 7] = torch.nan
    view = DenseUpdates(values, view.clients)
    at, vectors = known(view), directions(view)
    probe = Probe(view, vectors, rule, at)
    for mix in mixes(probe):
        expected = oracle(view, vectors, rule, at, mix.masked_fill(torch.arange(probe.span) == 4, 0.0))
        mix = mix.clone()
        mix[..., 4] = 0.0
        assert probe.deviation(mix) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_nothing_honest_is_finite() -> None:
    view = DenseUpdates(torch.full((4, 3), torch.nan))
    probe = Probe(view, torch.ones(1, 3), Mean(), standalone(view, 5, 1))
    assert probe.deviation(probe.mean) == 0.0


@pytest.mark.parametrize("rule", [Krum(f=2), Median(), FoolsGold()])
def test_rows_that_are_no_numbers_are_detected(rule: Rule) -> None:
    view = DenseUpdates(cohort().values.float())
    probe = Probe(view, directions(cohort()).float(), rule, standalone(view, 12, 2))
    assert probe.deviation(probe.mean + 1e39 * probe.unit(0)) == 0.0


def test_a_round_that_is_given_up_has_no_deviation() -> None:
    view = cohort()
    values = view.values.clone()
    values[0, 0] = values[1, 0] = torch.nan
    view = DenseUpdates(values, view.clients)
    probe = Probe(view, directions(view), Krum(f=1), known(view))
    assert probe.deviation(probe.mean) == 0.0


def test_a_huge_row_does_not_spoil_the_others() -> None:
    view = cohort()
    values = view.values.clone()
    values[3] = 1e30
    view = DenseUpdates(values, view.clients)
    at = known(view)
    rule = Krum(f=3)
    # Of mixes that do not touch the huge row, what Krum picks is an ordinary row, and it is found.
    probe = Probe(view, torch.ones(1, view.shape[1], dtype=torch.float64), rule, at)
    mix = torch.zeros_like(probe.mean)
    mix[0], mix[1] = 0.5, 0.5
    answer = rule.aggregate(probe.stack(mix), context=at.server_context)
    assert probe.deviation(mix) == pytest.approx(probe.whole_deviation(probe.stack(mix)), rel=1e-6)
    assert answer.vector.norm() < 1e3


def test_close_rows_far_from_zero_keep_their_distances() -> None:
    draws = torch.Generator().manual_seed(3)
    base = 1e3 * torch.randn(50, generator=draws, dtype=torch.float64)
    view = DenseUpdates(base + 1e-4 * torch.randn(9, 50, generator=draws, dtype=torch.float64))
    vectors = column_spread(view)[None]
    at = standalone(view, 11, 2)
    for rule in (Krum(f=2), GeometricMedian(), MultiKrum(f=2)):
        probe = Probe(view, vectors, rule, at)
        mix = probe.mean - 0.7 * probe.unit(0)
        assert probe.deviation(mix) == pytest.approx(oracle(view, vectors, rule, at, mix), rel=1e-3)


def test_equal_rows_stay_equal() -> None:
    view = cohort()
    values = view.values.clone()
    values[5] = values[2]
    view = DenseUpdates(values, view.clients)
    probe = Probe(view, directions(view), Krum(f=2), known(view))
    assert torch.equal(probe._places[5], probe._places[2])


@pytest.mark.parametrize("rule", [ClippedClustering(), CenteredClipping(radius=2.0), FoolsGold()])
def test_what_the_rule_remembers_is_used_and_not_changed(rule: Rule) -> None:
    view = cohort()
    at, vectors = known(view), directions(view)
    first = rule.aggregate(DenseUpdates(3 * torch.ones(12, 40, dtype=torch.float64), torch.arange(12)))
    at = dataclasses.replace(at, rule_state=first.state)
    before = {key: value.clone() for key, value in first.state.items()}
    probe = Probe(view, vectors, rule, at)
    for mix in mixes(probe):
        assert probe.deviation(mix) == pytest.approx(oracle(view, vectors, rule, at, mix), rel=1e-7, abs=1e-9)
    assert all(torch.equal(before[key], first.state[key]) for key in before)


def test_rows_of_the_answer_are_those_that_were_probed() -> None:
    view = cohort()
    at, vectors = known(view), directions(view)
    probe = Probe(view, vectors, Krum(f=2), at)
    mix = mixes(probe)[-1]
    rows = probe.stack(mix)
    expected = mix.expand(2, -1) @ torch.cat([view.values, vectors])
    assert torch.allclose(rows.materialise()[rows.malicious], expected, rtol=1e-12, atol=1e-12)
    assert rows.clients.tolist() == sorted([*view.clients.tolist(), *at.clients.tolist()])
    assert probe.norm(mix.expand(2, -1)[0]) == pytest.approx(float(expected[0].norm()), rel=1e-9)
    gaps = (view.values - expected[0]).norm(dim=1)
    assert torch.allclose(probe.distances(mix.expand(2, -1)[0]), gaps, rtol=1e-9)


def test_estimates_are_confirmed_by_whole_aggregations() -> None:
    view = cohort(d=5000)
    at, vectors = known(view), directions(view)
    probe = Probe(view, vectors, Median(), at, sample=50)
    near, far = probe.mean + 0.1 * probe.unit(0), probe.mean + 5 * probe.unit(0)
    rows, deviation, mix = probe.settle([(near, math.inf), (far, 0.0)])
    assert mix is far
    assert deviation == pytest.approx(oracle(view, vectors, Median(), at, far), rel=1e-9)
    assert torch.equal(rows.materialise(), probe.stack(far).materialise())
    assert probe.aggregations == 2


@pytest.mark.parametrize(
    "rule", [FLAME(noise=0.3), Clip(4.0) >> FLAME(noise=0.3), Bucketing(s=2) >> FLAME(noise=0.1)], ids=name
)
def test_noise_in_every_coordinate_counts_by_its_expected_square(rule: Rule) -> None:
    view = cohort(d=2000)
    at, vectors = known(view), directions(view)
    probe = Probe(view, vectors, rule, at)
    assert probe.method == "exact"
    for mix in mixes(probe, 8):
        once = probe.whole_deviation(probe.stack(mix))
        # Of 2000 draws the mean square is within a few per cent of what is expected.
        assert probe.deviation(mix) == pytest.approx(once, rel=0.1)
        quiet = rule.aggregate(probe.stack(mix), context=at.server_context, generator=probe._draws())
        assert quiet.weights is not None
        bare = (quiet.weights @ probe.stack(mix).materialise() - view.values.mean(0)).norm()
        assert probe.deviation(mix) == pytest.approx(math.hypot(bare, quiet.noise * math.sqrt(2000)), rel=1e-7)
        assert quiet.noise > 0


def test_attacks_on_a_noisy_rule_record_what_a_whole_aggregation_finds() -> None:
    view = cohort(d=5000)
    at, rule = known(view), FLAME(noise=0.05)
    sent = OptimisedALIE().send(view, rule, at)
    answer = rule.aggregate(sent.rows, context=at.server_context)
    assert sent.report["deviation"] == pytest.approx(float((answer.vector - view.values.mean(0)).norm()), rel=0.05)
