"""What every registered rule and mixing promises, whatever it computes: one contract for all of them.

A rule that is registered but not in ``TABLE`` fails here, and so does one that breaks a promise. Where a rule's
docstring says otherwise (a sign vote does not return the row that all agree on), the exception is written down here.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bezoar.aggregation import (
    ARC,
    CAF,
    CVA,
    FABA,
    FLAME,
    LASA,
    MDA,
    MVA,
    NNM,
    RULES,
    SIP,
    SMEA,
    Aggregate,
    AtQuantile,
    BayesMean,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clip,
    ClippedClustering,
    Columnwise,
    Context,
    DnC,
    FilterL2,
    FLDetector,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    GuardedSIP,
    Krum,
    LFighter,
    MeaMed,
    Mean,
    Median,
    Mixing,
    MoNNA,
    MultiKrum,
    Part,
    Pipeline,
    PosteriorMean,
    PriorMean,
    PriorTrimmedMean,
    Rule,
    SignGuard,
    SignVote,
    TrimmedMean,
    pipeline,
    pipeline_tables,
)
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.priors import Independent
from bezoar.registry import LABELS
from bezoar.updates import DenseUpdates, Layout, Mixed, Needs, RowUpdates, Segment, Stacked, Updates, client_gradients
from bezoar.updates.held import HeldUpdates

N, BAD, D = 11, 2, 13
#: A row that MoNNA trusts, and never a hostile one here.
TRUSTED = 5

#: Every registered name with one or more instances for N rows of which at most BAD are bad.
TABLE: dict[str, list[Rule]] = {
    "clip": [Clip(3.0) >> TrimmedMean(f=BAD), Clip(math.inf) >> Median()],
    "arc": [ARC(f=BAD) >> TrimmedMean(f=BAD)],
    "nnm": [NNM(f=BAD) >> TrimmedMean(f=BAD), ARC(f=BAD) >> NNM(f=BAD) >> Median()],
    "bucketing": [Bucketing(s=2) >> TrimmedMean(f=BAD), Bucketing(s=2, seed=1) >> Median()],
    "mean": [Mean(), Mean(weighted=True, cap=0.3)],
    "median": [Median(), Median(variant="lower")],
    "trimmed-mean": [TrimmedMean(f=BAD), TrimmedMean(f=BAD, weighted=True)],
    "mea-med": [MeaMed(f=BAD)],
    "sign-vote": [SignVote(), SignVote(scale=0.1)],
    "krum": [Krum(f=BAD), *(Krum(f=BAD, variant=v) for v in ("byzfl", "sparsefed", "code-2021-05"))],  # type: ignore[arg-type]
    "multi-krum": [MultiKrum(f=BAD), MultiKrum(f=BAD, m=4, variant="byzfl")],
    "bulyan": [Bulyan(f=BAD), Bulyan(f=BAD, variant="sparsefed")],
    "geometric-median": [GeometricMedian(), GeometricMedian(weighted=True)],
    "centered-clipping": [CenteredClipping(radius=8.0), CenteredClipping(radius=8.0, iterations=1)],
    "mda": [MDA(f=BAD)],
    "mva": [MVA(f=BAD)],
    "smea": [SMEA(f=BAD)],
    "caf": [CAF(f=BAD)],
    "filter-l2": [FilterL2(f=BAD), FilterL2(f=BAD, sigma=0.1)],
    "monna": [MoNNA(f=BAD, trusted=TRUSTED)],
    "cva": [CVA(f=BAD), CVA(f=BAD, pivot=TrimmedMean(f=BAD))],
    "faba": [FABA(f=BAD)],
    "bayes-mean": [BayesMean()],
    "dnc": [DnC(f=BAD), DnC(f=BAD, iterations=3, columns=5)],
    "fltrust": [FLTrust()],
    "foolsgold": [FoolsGold(), FoolsGold(features="last-layer", normalise=False), FoolsGold(features="full")],
    "flame": [FLAME(), FLAME(noise=0.0)],
    "signguard": [SignGuard(), SignGuard(clustering="dbscan", share=1.0)],
    "clipped-clustering": [ClippedClustering(), ClippedClustering(linkage="single", history=0)],
    "lfighter": [LFighter()],
    "lasa": [LASA(), LASA(sparsity=0.0)],
    # All sets without two or fewer rows may be honest.
    "sip": [SIP(Independent(0.05), base, delta=0.01, disjoint="drop") for base in (GeometricMedian(), Mean())],
    "prior-trimmed-mean": [PriorTrimmedMean(Independent(0.05), delta=0.02, draws=300)],
    "prior-mean": [PriorMean(Independent(0.05))],
    "posterior-mean": [PosteriorMean(Independent(0.05), delta=0.01, memory=m) for m in (0.0, 0.5)],
    "guarded-sip": [GuardedSIP(Independent(0.05), base, delta=0.01, disjoint="drop") for base in (None, Mean())],
    "chance-constrained": [
        AtQuantile(Independent(0.05), base, delta=0.02, clip=True) for base in (TrimmedMean(f=0), MVA(f=0))
    ],
    "fldetector": [FLDetector(window=3), FLDetector(window=2, features="last-layer")],
}

#: Rules that are told who may be bad: to them rows are clients.
TOLD = (SIP, PriorTrimmedMean, PriorMean, PosteriorMean, GuardedSIP, AtQuantile)

RULE_LIST = [rule for rules in TABLE.values() for rule in rules]
every = pytest.mark.parametrize("rule", RULE_LIST, ids=repr)
#: With no memory, and for rules that have one also after some rounds.
remembering = [rule for rule in RULE_LIST if isinstance(rule, CenteredClipping | FoolsGold | FLDetector)] + [
    rule
    for rule in RULE_LIST
    if (isinstance(rule, ClippedClustering) and rule.history) or (isinstance(rule, PosteriorMean) and rule.memory)
]
every_state = pytest.mark.parametrize(
    ("rule", "warm"),
    [(rule, False) for rule in RULE_LIST] + [(rule, True) for rule in remembering],
    ids=lambda value: "warm" if value is True else "cold" if value is False else repr(value),
)


def parts_of(rule: Part) -> list[Part]:
    return [*rule.mixings, rule.rule] if isinstance(rule, Pipeline) else [rule]


def has(rule: Rule, *kinds: type[Part]) -> bool:
    return any(isinstance(part, kinds) for part in parts_of(rule))


def draws_numbers(rule: Rule) -> bool:
    return has(rule, Bucketing, DnC, SignGuard, FLDetector) or (isinstance(rule, FLAME) and rule.noise > 0)


def scales_with_rows(rule: Rule) -> bool:
    """Whether a times the rows give a times the answer."""
    fixed = isinstance(rule, CenteredClipping | SignVote | FLTrust) or (isinstance(rule, FilterL2) and rule.sigma)
    return not fixed and not any(isinstance(part, Clip) and math.isfinite(part.radius) for part in parts_of(rule))


def with_f(rule: Any, f: int, trusted: int = 0) -> Any:
    """The same rule with another f, and what else depends on the number of rows as it fits few of them."""
    if isinstance(rule, Pipeline):
        return dataclasses.replace(
            rule, mixings=tuple(with_f(part, f) for part in rule.mixings), rule=with_f(rule.rule, f)
        )
    changes: dict[str, Any] = {"f": f} if hasattr(rule, "f") else {}
    if isinstance(rule, MoNNA):
        changes["trusted"] = trusted
    if isinstance(rule, MultiKrum):
        changes["m"] = None
    if isinstance(rule, CVA):
        changes["pivot"] = with_f(rule.pivot, f)
    return dataclasses.replace(rule, **changes)


def layout_of(d: int) -> Layout:
    if d < D:
        return (Segment("head.weight", 0, d, (1, d)),)
    start = d - 9
    return (
        Segment("body.weight", 0, start, (start,)),
        Segment("head.weight", start, d - 3, (3, 2)),
        Segment("head.bias", d - 3, d, (3,)),
    )


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def honest(n: int = N, d: int = D, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows that agree in direction and length, but for some noise."""
    return (normal(1, d, seed=99) + 0.3 * normal(n, d, seed=seed)).to(dtype)


def held(values: Tensor, clients: Tensor | None = None) -> DenseUpdates:
    return DenseUpdates(values, clients, layout_of(values.shape[1]))


def knowledge(n: int = N, d: int = D, round: int = 0, scale: float = 1.0) -> Context:
    """All that a server may know."""
    return Context(
        round=round,
        model=(normal(d, seed=5) * 0.8**round + normal(d, seed=6)) * scale,
        # No two of the others hold more than the share 2/n, which a weighted trimmed mean takes off.
        client_weights=torch.linspace(1.0, 1.2, n).index_fill(0, torch.tensor(min(TRUSTED, n - 1)), 5.0),
        root_gradient=normal(d, seed=99).float(),
    )


ROUNDS = 6


@functools.cache
def memory(rule: Rule, dtype: torch.dtype = torch.float32, scale: float = 1.0, d: int = D) -> dict[str, Tensor]:
    state: Any = {}
    for t in range(ROUNDS):
        values = (honest(d=d, seed=100 + t, dtype=torch.float64) * 0.9**t * scale).to(dtype)
        state = rule.aggregate(held(values), state, knowledge(d=d, round=t, scale=scale)).state
    return dict(state)


def ask(rule: Rule, updates: Any, warm: bool = False, **options: Any) -> Aggregate:
    rows = updates if isinstance(updates, Updates) else held(updates)
    n, d = rows.shape
    state = memory(rule, rows.dtype, d=d) if warm else {}
    context = knowledge(n, d, round=ROUNDS if warm else 0)
    return rule.aggregate(rows, state, context, **options)


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    found, expected = found.double(), expected.double()
    size = max(float(expected.abs().max()), 1e-300)
    # Divided first: the square of 1e-30 or 1e30 would be no single number.
    error = float(((found - expected) / size).norm() / (expected / size).norm().clamp(min=1e-300))
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Rows this short only wait for other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The table


def test_the_table_covers_every_registered_name() -> None:
    ours = {name for name in RULES if RULES[name].__module__.startswith("bezoar.")}
    assert set(TABLE) == ours, "a rule was registered without an instance in TABLE (or the other way round)"
    for name, rules in TABLE.items():
        for rule in rules:
            assert any(RULES.name(part) == name for part in parts_of(rule)), f"{name}: {rule!r} is not it"
            assert isinstance(rule, Pipeline) == issubclass(RULES[name], Mixing)


# 1. The input is never changed


def snapshot(*things: Any) -> list[Any]:
    def copied(thing: Any) -> Any:
        if isinstance(thing, Tensor):
            return thing.detach().clone()
        if isinstance(thing, dict):
            return {name: copied(value) for name, value in thing.items()}
        return np.array(thing)

    return [copied(thing) for thing in things]


def same(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(value, after[name]) for name, value in before.items())
    if isinstance(after, Tensor):
        return torch.equal(before.nan_to_num(nan=1.25), after.detach().nan_to_num(nan=1.25))
    return np.array_equal(before, after)


@every_state
@pytest.mark.parametrize("d", [1, D])
def test_nothing_handed_over_is_changed_nor_lent_back(rule: Rule, warm: bool, d: int) -> None:
    values = honest(d=d)
    for matrix in (values, values.T.contiguous().T):
        state, context = memory(rule, d=d) if warm else {}, knowledge(d=d)
        context = dataclasses.replace(context, last_aggregate=values[0].clone())
        given = [matrix, context.model, context.client_weights, context.root_gradient, context.last_aggregate, state]
        before = snapshot(*given)
        answer = rule.aggregate(held(matrix), state, context)
        assert all(map(same, before, given))
        # Nor may the caller change them, or the memory, when it goes on with the answer in place.
        kept = snapshot(dict(answer.state))[0]
        answer.vector.fill_(7.0)
        assert all(map(same, before, given))
        assert same(kept, dict(answer.state)), "the state is the answer itself, not a copy"
        for tensor in answer.state.values():
            if tensor.numel() and tensor.is_floating_point():
                tensor.fill_(3.0)
        # One memory may hold what the one before it held.
        assert all(map(same, before[:-1], given[:-1])), "the new state shares memory with what was handed over"


@every
def test_gradients_are_not_recorded(rule: Rule) -> None:
    context = dataclasses.replace(knowledge(), last_aggregate=honest(1)[0])
    for name in ("model", "root_gradient", "last_aggregate", "client_weights"):
        getattr(context, name).requires_grad_()
    answer = rule.aggregate(held(honest().requires_grad_()), {}, context)
    assert not answer.vector.requires_grad
    assert not any(tensor.requires_grad for tensor in answer.state.values())


@every
def test_arrays_that_can_not_be_written_are_read(rule: Rule) -> None:
    if Needs.LAYOUT in rule.needs:
        pytest.skip("needs names")
    array = honest().numpy()
    expected = outside(rule, array)
    locked = array.copy()
    locked.setflags(write=False)
    for given in (locked, np.asfortranarray(array), list(locked)):
        before = np.array(given)
        found = outside(rule, given)
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.array(given), before)


# 2. Kind, type and container are kept


def outside(rule: Rule, updates: Any, n: int = N, d: int = D) -> Any:
    """The rule as a function, as a notebook calls it."""
    return rule(updates, context=knowledge(n, d))


def mappings(values: Tensor) -> list[dict[str, Any]]:
    return [
        {part.name: row[part.start : part.stop].reshape(part.shape) for part in layout_of(values.shape[1])}
        for row in values
    ]


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kinds_and_types_are_kept_and_agree(rule: Rule, dtype: torch.dtype) -> None:
    values = honest(dtype=dtype)
    wide = ask(rule, values.double()).vector
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}.get(dtype, 1e-11)
    named = outside(rule, mappings(values))
    assert list(named) == [segment.name for segment in layout_of(D)]
    assert all(named[s.name].dtype == dtype and named[s.name].shape == s.shape for s in layout_of(D))
    near(torch.cat([value.flatten() for value in named.values()]), wide, tolerance)
    if Needs.LAYOUT in rule.needs:
        return
    for kind in (values, list(values)):
        found = outside(rule, kind)
        assert isinstance(found, Tensor)
        assert found.dtype == dtype
        near(found, wide, tolerance)
    if dtype != torch.bfloat16:
        array = values.numpy()
        for given in (array, list(array)):
            found = outside(rule, given)
            assert isinstance(found, np.ndarray)
            assert found.dtype == array.dtype
            near(torch.from_numpy(found), wide, tolerance)
        arrays = outside(rule, [{name: value.numpy() for name, value in row.items()} for row in mappings(values)])
        assert all(isinstance(value, np.ndarray) and value.dtype == array.dtype for value in arrays.values())


MIXINGS = [part for rule in RULE_LIST for part in parts_of(rule) if isinstance(part, Mixing)]


@pytest.mark.parametrize("mixing", MIXINGS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_mixings_alone_keep_kind_and_type(mixing: Mixing, dtype: torch.dtype) -> None:
    values = honest(dtype=dtype)
    before = values.clone()
    found = mixing(values)
    assert found.dtype == dtype
    assert found.shape == (mixing.rows_out(N), D)
    assert torch.equal(values, before)
    found.fill_(7.0)
    assert torch.equal(values, before), "mixed rows are the caller's"
    assert isinstance(mixing(list(values)), list)
    assert isinstance(mixing(values.float().numpy()), np.ndarray)
    assert list(mixing(mappings(values))[0]) == [segment.name for segment in layout_of(D)]


# 3. Hostile rows

HOSTILE: dict[str, Callable[[Tensor], Tensor | float]] = {
    "nan": lambda rows: torch.nan,
    "one nan": lambda rows: rows[TRUSTED].index_fill(0, torch.tensor([3]), torch.nan),
    "inf": lambda rows: torch.inf,
    "-inf": lambda rows: -torch.inf,
    "1e30": lambda rows: 1e30,
    "-1e30": lambda rows: -1e30,
    "1e30 beside nan": lambda rows: 1e30,
    "1e38": lambda rows: 1e38,
    "3e38, both signs": lambda rows: rows[TRUSTED].sign() * -3e38,
    "1e6": lambda rows: 1e6,
    "1e-30": lambda rows: 1e-30,
    "1e-45": lambda rows: 1e-45,
    "zero": lambda rows: 0.0,
    "copy": lambda rows: rows[TRUSTED],
    "mirrored": lambda rows: -rows[TRUSTED],
    "mirrored and long": lambda rows: -100 * rows[TRUSTED],
}
PLACES = [[0], [N - 1], [0, 1], [0, N - 1], [3, 7], [9, 10]]


def promises(rule: Rule, warm: bool = False) -> bool:
    """Whether bad rows can not carry the answer away: not so with the mean, nor where one row alone passes."""
    # FLDetector takes the mean until it has seen enough rounds.
    return not has(rule, Mean, PriorMean, FoolsGold) and (warm or not isinstance(rule, FLDetector))


@every_state
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_rows_leave_a_finite_answer_and_are_named(rule: Rule, warm: bool, hostile: str) -> None:
    clean = honest()
    longest = float(clean.norm(dim=1).max())
    for places in PLACES:
        values = clean.clone()
        values[places] = HOSTILE[hostile](clean)
        if "beside" in hostile:
            values[places[0]] = torch.nan
        answer = ask(rule, values, warm)
        assert torch.isfinite(answer.vector).all()
        unusable = [row for row in places if not torch.isfinite(values[row]).all()]
        assert {row for row, why in answer.excluded.items() if why == "not finite"} == set(unusable)
        assert all(0 <= row < N and isinstance(why, str) and why for row, why in answer.excluded.items())
        if promises(rule, warm):
            assert float(answer.vector.norm()) <= 3 * longest
        check_diagnostics(rule, answer, values, warm)


@every
@pytest.mark.parametrize("evil", [1e30, 1e149, 1e150, 1e152, -1e154, 1e300, -1e300])
def test_hostile_double_precision(rule: Rule, evil: float) -> None:
    values = honest(dtype=torch.float64)
    values[[0, 7]] = evil
    answer = ask(rule, values)
    assert torch.isfinite(answer.vector).all()
    if promises(rule):
        assert float(answer.vector.norm()) <= 3 * float(honest().norm(dim=1).max())


@every
@pytest.mark.parametrize("evil", [60000.0, -60000.0, 6e-8])
def test_hostile_half_precision(rule: Rule, evil: float) -> None:
    values = honest(dtype=torch.float16)
    values[[0, 7]] = evil
    answer = ask(rule, values)
    assert torch.isfinite(answer.vector).all()
    if promises(rule):
        assert float(answer.vector.float().norm()) <= 3 * float(honest().norm(dim=1).max())


@every
def test_malformed_rows_are_hostile_rows(rule: Rule) -> None:
    values = honest()
    expected = values.clone()
    expected[[2, 9]] = torch.nan
    reference = ask(rule, expected).vector
    rows: list[Any] = mappings(values)
    rows[2] = {name: value for name, value in rows[2].items() if name != "head.weight"}
    rows[9] = "text"
    answer = rule.aggregate(rows, {}, knowledge())
    assert {row for row, why in answer.excluded.items() if "than the majority" in why} == {2, 9}
    near(answer.vector, reference)
    if Needs.LAYOUT not in rule.needs:
        vectors: list[Any] = list(values)
        vectors[2], vectors[9] = torch.zeros(D + 1), None
        answer = rule.aggregate(vectors, {}, knowledge())
        assert {row for row, why in answer.excluded.items() if "not a vector" in why} == {2, 9}
        near(answer.vector, reference)


def largest_excluded(rule: Rule, n: int = N) -> int:
    if rule.tolerated is not None:
        return rule.tolerated
    return n - 1 if rule.spare else (n - 1) // 2


@every_state
def test_as_many_rows_as_allowed_may_be_unusable_and_no_more(rule: Rule, warm: bool) -> None:
    if isinstance(rule, PriorTrimmedMean):
        pytest.skip("a matter of the weight that they held: see test_prior_trimmed_mean.py")
    order = [row for row in (3, 9, 0, 10, 4, 1, 7, 2, 8, 6) if row != TRUSTED]
    limit = largest_excluded(rule)
    values = honest()
    values[order[:limit]] = torch.nan
    answer = ask(rule, values, warm)
    assert torch.isfinite(answer.vector).all()
    assert set(order[:limit]) <= set(answer.excluded)
    check_diagnostics(rule, answer, values, warm)
    too_many = [*order, TRUSTED][: limit + 1]
    values[too_many] = torch.inf
    with pytest.raises(HostileRowsError, match=f"{limit + 1} of {N} updates are not finite") as caught:
        ask(rule, values, warm)
    assert caught.value.rows == tuple(sorted(too_many))


@every
def test_excluded_rows_leave_no_trace(rule: Rule) -> None:
    """With e unusable rows the rule runs as (n - e, f - e)."""
    values = honest()
    kept = [row for row in range(N) if row not in (0, 8)]
    values[[0, 8]] = torch.nan
    weights = knowledge().client_weights
    assert weights is not None
    fewer = with_f(rule, BAD - 2, trusted=kept.index(TRUSTED)) if rule.tolerated is not None else rule
    if isinstance(rule, MultiKrum):
        fewer = dataclasses.replace(fewer, m=rule.m)
    ids = torch.arange(N)[kept]
    if isinstance(rule, TOLD):
        # Who is known to be bad tells something about the others' number: only sets without them remain.
        pytest.skip("see the rules' own tests")
    context = dataclasses.replace(knowledge(), client_weights=weights[kept])
    if isinstance(rule, TrimmedMean) and rule.weighted:
        # Not the number of rows but the weight they held is used up; with equal weights that is the same.
        ones = torch.ones(N, dtype=torch.float64)
        answer = rule.aggregate(values, context=Context(client_weights=ones))
        near(answer.vector, fewer.aggregate(values[kept], context=Context(client_weights=ones[kept])).vector)
        return
    near(ask(rule, values).vector, fewer.aggregate(held(values[kept], ids), {}, context).vector)


# 4. Agreement


def agreed(rule: Rule, row: Tensor) -> Tensor:
    """The answer to rows that are all equal to ``row``, where it is not that row."""
    length = row.norm()
    for part in parts_of(rule):
        if isinstance(part, Clip):
            row = row * (part.radius / length).clamp(max=1)
        if isinstance(part, SignVote):
            row = row.sign() * part.scale
        if isinstance(part, FLTrust):
            root = knowledge(d=len(row)).root_gradient
            assert root is not None
            row = row * (root.norm() / length)
        if isinstance(part, LASA):
            kept = [row[s.start : s.stop].abs().sort(descending=True).values for s in layout_of(len(row))]
            least = torch.cat(
                [size[max(1, round((1 - part.sparsity) * len(size))) - 1].expand(len(size)) for size in kept]
            )
            row = row * (row.abs() >= least)
    return row


@every_state
def test_identical_rows_give_that_row(rule: Rule, warm: bool) -> None:
    for seed in range(3):
        row = honest(1, seed=seed)[0]
        answer = ask(rule, row.repeat(N, 1), warm)
        noisy = isinstance(rule, FLAME) and rule.noise > 0
        found, expected = answer.vector, agreed(rule, row)
        if warm and isinstance(rule, FoolsGold | ClippedClustering) and not getattr(rule, "normalise", False):
            # A weighted sum of another mass, or clipped to the usual length of earlier rounds.
            found, expected = found / found.norm(), expected / expected.norm()
        near(found, expected, 0.01 if noisy else 1e-6)


@every_state
def test_zero_rows_give_zero(rule: Rule, warm: bool) -> None:
    answer = ask(rule, torch.zeros(N, D), warm)
    if isinstance(rule, FLTrust):
        assert torch.equal(answer.vector, normal(D, seed=99).float())
    else:
        assert torch.isfinite(answer.vector).all()
        assert float(answer.vector.abs().max()) <= (1e-6 if warm else 0.0)


#: Powers of two near 1e30 and 1e-30 round nothing.
SIZES = [2.0**100, 2.0**-100]


@every_state
@pytest.mark.parametrize("size", SIZES, ids=["1e30", "1e-30"])
def test_all_rows_huge_or_tiny(rule: Rule, warm: bool, size: float) -> None:
    values = honest()
    state = memory(rule, scale=size) if warm else {}
    context = knowledge(round=ROUNDS if warm else 0, scale=size)
    answer = rule.aggregate(held(values * size), state, context)
    assert torch.isfinite(answer.vector).all()
    if scales_with_rows(rule):
        near(answer.vector.double() / size, ask(rule, values, warm).vector)
    elif isinstance(rule, SignVote | FLTrust):
        near(answer.vector, ask(rule, values, warm).vector)


@every
@pytest.mark.parametrize(
    ("size", "dtype"),
    [(2.0**125, torch.float32), (2.0**-140, torch.float32), (1e148, torch.float64), (1e-300, torch.float64)],
    ids=str,
)
def test_all_rows_at_the_edge_of_legal_numbers(rule: Rule, size: float, dtype: torch.dtype) -> None:
    """Squares of the smallest are zero: digits may go, but not the order of magnitude."""
    values = (honest(dtype=torch.float64) * size).to(dtype)
    if isinstance(rule, FoolsGold) and not rule.normalise:
        pytest.skip("a sum of rows, which may be no legal number")
    answer = ask(rule, values)
    assert torch.isfinite(answer.vector).all()
    if scales_with_rows(rule):
        longest = float((values.double() / size).norm(dim=1).max())
        assert float((answer.vector.double() / size).norm()) <= 1.01 * longest


@every
def test_tiny_rows_with_digits_only_in_their_differences(rule: Rule) -> None:
    """Raw weights: norm 1e3, spread 1e-4; the answer is among the rows."""
    values = 1e3 * normal(1, D, seed=99) + 1e-4 * normal(N, D)
    answer = ask(rule, values)
    if scales_with_rows(rule) and not has(rule, LASA):
        middle = values.mean(0)
        slack = 0.01 * float(middle.norm()) if isinstance(rule, FLAME) else 0.0
        assert float((answer.vector - middle).norm()) <= 1.01 * float((values - middle).norm(dim=1).max()) + slack


# 5. Determinism


def equal(one: Aggregate, other: Aggregate) -> bool:
    """Bit for bit, with all diagnostics and the state."""

    def bits(tensor: Tensor | None) -> bytes:
        return b"" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes()

    names = ("vector", "weights", "scores", "selected", "scales")
    return (
        all(bits(getattr(one, name)) == bits(getattr(other, name)) for name in names)
        and one.excluded == other.excluded
        and one.state.keys() == other.state.keys()
        and all(bits(one.state[name]) == bits(other.state[name]) for name in one.state)
    )


def numpy_state() -> tuple[bytes, int]:
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return state["key"].tobytes(), state["pos"]


@every_state
def test_the_same_call_gives_the_same_bits_and_leaves_global_generators_alone(rule: Rule, warm: bool) -> None:
    values = honest()
    if warm:
        memory(rule)
    before = torch.get_rng_state(), numpy_state(), random.getstate()
    first = ask(rule, values, warm)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert numpy_state() == before[1]
    assert random.getstate() == before[2]
    torch.rand(3)
    random.random()
    assert equal(first, ask(rule, values, warm))
    torch.set_rng_state(before[0])
    random.setstate(before[2])


@every_state
def test_the_callers_generator_is_the_only_source(rule: Rule, warm: bool) -> None:
    values = honest()

    def generator(seed: int = 3) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    first, second = generator(), generator()
    answers = [ask(rule, values, warm, generator=source) for source in (first, second)]
    assert equal(*answers)
    assert torch.equal(first.get_state(), second.get_state())
    drew = not torch.equal(first.get_state(), generator().get_state())
    # FLDetector draws once it has something to judge.
    assert drew == (draws_numbers(rule) and not (isinstance(rule, FLDetector) and not warm))
    changed = [ask(reseeded(rule), values, warm, generator=generator())]
    assert not draws_numbers(rule) or isinstance(rule, FLDetector) or equal(changed[0], answers[0])


def reseeded(rule: Rule) -> Rule:
    def changed(part: Any) -> Any:
        drawn = hasattr(part, "seed") and not isinstance(part, FoolsGold | FLDetector)
        return dataclasses.replace(part, seed=part.seed + 1) if drawn else part

    if isinstance(rule, Pipeline):
        return dataclasses.replace(rule, mixings=tuple(map(changed, rule.mixings)), rule=changed(rule.rule))
    return changed(rule)


@pytest.mark.parametrize(
    "rule", [Bucketing(s=2) >> Median(), DnC(f=BAD, columns=2), FLAME(), SignGuard(clustering="dbscan")], ids=repr
)
def test_without_a_generator_seed_and_round_decide(rule: Rule) -> None:
    values = normal(N, 400).float()

    def vector(rule: Rule, round: int = 0) -> Tensor:
        return rule.aggregate(held(values), {}, knowledge(d=400, round=round)).vector

    first = vector(rule)
    assert torch.equal(first, vector(rule))
    assert any(not torch.equal(first, vector(rule, t)) for t in range(1, 20))
    for _ in range(20):
        rule = reseeded(rule)
        if not torch.equal(first, vector(rule)):
            break
    else:
        raise AssertionError("the seed decides nothing")


@pytest.mark.parametrize("rule", [rule for rule in RULE_LIST if isinstance(rule, Columnwise)], ids=repr)
def test_columns_do_not_depend_on_threads_or_on_place(rule: Rule) -> None:
    # More than one slice of 2^18 numbers.
    values = honest(d=60000)
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        answers.append(ask(rule, values).vector)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    places = torch.tensor([0, 1, 777, 30001, 59999])
    assert torch.equal(ask(rule, values[:, places]).vector, answers[0][places])


# 6. Diagnostics

#: The answer is the weighted sum of rows plus something else: noise, the first centre, the server's own update.
ADDS = (FLAME, CenteredClipping, FLTrust)


def check_diagnostics(rule: Rule, answer: Aggregate, values: Tensor, warm: bool = False) -> None:
    n = len(values)
    for name, dtype in (("weights", torch.float64), ("scores", torch.float64), ("selected", torch.bool)):
        tensor = getattr(answer, name)
        if tensor is not None:
            assert tensor.shape == (n,), f"{name} {list(tensor.shape)}"
            assert tensor.dtype == dtype
    finite = torch.isfinite(values).all(1)
    gone = (~finite).nonzero().flatten().tolist()
    assert set(gone) <= set(answer.excluded)
    if answer.weights is not None:
        assert torch.isfinite(answer.weights).all()
        # What the rule itself says it left out must not count either.
        assert not answer.weights[sorted(answer.excluded)].any()
        clean = torch.where(finite[:, None], values.double(), 0.0)
        expected = answer.weights @ clean
        if not (isinstance(rule, ADDS) and (warm or not isinstance(rule, CenteredClipping))):
            size = (answer.weights.abs()[:, None] * clean.abs()).max().clamp(min=1e-300)
            assert float(((answer.vector.double() - expected) / size).abs().max()) <= 1e-5
    if answer.scores is not None:
        assert torch.isnan(answer.scores[gone]).all()
    if answer.selected is not None:
        assert not answer.selected[sorted(answer.excluded)].any()
        if answer.weights is not None:
            assert not answer.weights[~answer.selected].any()
    if answer.scales is not None:
        assert answer.scales.shape == (n,)
        assert not answer.scales[gone].any()


@every_state
def test_diagnostics_are_in_the_callers_numbering(rule: Rule, warm: bool) -> None:
    check_diagnostics(rule, ask(rule, honest(), warm), honest(), warm)
    # The last row of those kept is not the last row of the caller's.
    values = honest()
    values[[1, 10]] = torch.nan
    answer = ask(rule, values, warm)
    check_diagnostics(rule, answer, values, warm)
    order = torch.tensor([10, 3, 5, 0, 1, 7, 9, 2, 8, 4, 6])
    if draws_numbers(rule) or has(rule, FoolsGold, FLDetector) or rule.weighted or has(rule, MoNNA, *TOLD):
        return
    moved = ask(rule, values[order], warm)
    for name in ("weights", "scores", "selected"):
        here, there = getattr(answer, name), getattr(moved, name)
        if here is not None:
            np.testing.assert_allclose(here[order].numpy(), there.numpy(), rtol=1e-5, atol=1e-7, err_msg=name)
    assert set(moved.excluded) == {order.tolist().index(row) for row in answer.excluded}


# 7. State


@every
def test_state_is_a_plain_mapping_that_a_file_can_keep(rule: Rule) -> None:
    state: Any = {}
    restored: Any = {}
    for t in range(ROUNDS):
        values = honest(seed=t)
        before = snapshot(dict(state))[0]
        answer = rule.aggregate(held(values), state, knowledge(round=t))
        assert same(before, dict(state)), "the state handed over was changed"
        assert all(isinstance(name, str) and isinstance(value, Tensor) for name, value in answer.state.items())
        resumed = rule.aggregate(held(values), restored, knowledge(round=t))
        assert equal(answer, resumed)
        state = answer.state
        restored = safetensors.torch.load(safetensors.torch.save(dict(state)))
    assert any(tensor.numel() for tensor in state.values()) == (rule in remembering)


@every
def test_cohorts_change_from_round_to_round(rule: Rule) -> None:
    """Rows come in any order and number; unusable ones are left out of the memory as well."""
    draws = torch.Generator().manual_seed(4)
    state: Any = {}
    shuffled: Any = {}
    for t in range(8):
        n = N + t % 3
        clients = torch.randperm(30, generator=draws)[:n]
        values = honest(n, seed=t)
        if t in (2, 5):
            values[[4, 9]] = torch.nan
        answer = rule.aggregate(held(values, clients), state, knowledge(n, round=t))
        assert torch.isfinite(answer.vector).all()
        check_diagnostics(rule, answer, values, warm=t > 0)
        state = answer.state
        order = torch.randperm(n, generator=draws)
        # Ties are common where subsets or clusters are compared by one number, and go to the lowest row.
        if (draws_numbers(rule) and not isinstance(rule, FLDetector)) or has(rule, MoNNA, MDA, Bulyan, LFighter):
            continue
        context = knowledge(n, round=t)
        assert context.client_weights is not None
        context = dataclasses.replace(context, client_weights=context.client_weights[order])
        moved = rule.aggregate(held(values[order], clients[order]), shuffled, context)
        near(moved.vector, answer.vector, 1e-4)
        shuffled = moved.state


# 8. One matrix in many forms


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@functools.cache
def forms() -> dict[str, tuple[Updates, DenseUpdates]]:
    """Updates that are never held as a matrix, each with the matrix of the same numbers."""
    generator = torch.Generator().manual_seed(8)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3))
        conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    clients = torch.arange(N).repeat_interleave(3) * 7
    # Clients agree but for noise: nothing hangs on a rounding error.
    inputs = torch.rand(len(clients), 1, 3, 3, generator=generator) + 0.5
    targets = torch.arange(3).repeat(N)

    def pair(updates: Updates, values: Tensor, layout: Layout) -> tuple[Updates, DenseUpdates]:
        return updates, DenseUpdates(values, updates.clients, layout)

    found = {}
    for name, model in (("linear", linear), ("conv", conv)):
        ghost, loop = (client_gradients(model, losses, inputs, targets, clients, way) for way in ("ghost", "loop"))
        found[f"ghost {name}"] = pair(ghost, loop.materialise(), loop.layout)
    values, layout = loop.materialise(), loop.layout
    pieces = [[row[: layout[1].start], row[layout[1].start :]] for row in values]
    found["rows"] = pair(RowUpdates(pieces, clients=ghost.clients, layout=layout), values, layout)
    mixing = torch.eye(N, dtype=torch.float64) + 0.1 * torch.rand(N, N, generator=generator, dtype=torch.float64)
    found["mixed"] = pair(Mixed(ghost, mixing), (mixing @ values.double()).float(), layout)
    found["scaled"] = pair(Mixed(ghost, mixing[0]), (mixing[0][:, None] * values).float(), layout)
    few = ghost.select(torch.arange(N - BAD))
    coefficients, basis = torch.tensor([[1.0, 0.5], [-1.0, 2.0]]), torch.stack([values[0], values.mean(0)])
    stacked = Stacked.by_client(few, coefficients, basis, torch.tensor([1, 30]))
    whole = torch.cat([values[: N - BAD], coefficients @ basis])
    found["stacked"] = pair(stacked, whole[torch.argsort(torch.cat([few.clients, torch.tensor([1, 30])]))], layout)
    return found


@every
@pytest.mark.parametrize("form", ["ghost linear", "ghost conv", "rows", "mixed", "scaled", "stacked"])
def test_all_forms_of_a_matrix_give_the_same_answer(rule: Rule, form: str) -> None:
    updates, dense = forms()[form]
    near(updates.materialise(), dense.materialise(), 1e-5)
    d = updates.shape[1]
    context = dataclasses.replace(knowledge(d=d), root_gradient=dense.materialise().mean(0))
    state: Any = {}
    for _ in range(2):
        found, expected = (rule.aggregate(rows, state, context) for rows in (updates, dense))
        near(found.vector, expected.vector, 1e-4)
        assert found.excluded.keys() == expected.excluded.keys()
        state = expected.state


# 9. Few rows, wrong parameters


@every
def test_few_rows(rule: Rule) -> None:
    """Every valid (n, f) works: distinct, identical, half identical and zero rows, and f unusable ones."""
    smallest: dict[int, int] = {}
    for n in range(1, 8):
        for f in range(3):
            fitting = with_f(rule, f)
            try:
                fitting.check(n)
            except ConfigError:
                continue
            smallest.setdefault(f, n)
            distinct = honest(n, seed=n)
            halves = distinct.clone()
            halves[: n // 2] = distinct[0]
            unusable = distinct.clone()
            # A weighted trimmed mean tolerates lost weight, not lost rows: the heavy client is among these.
            by_weight = isinstance(fitting, PriorTrimmedMean) or (isinstance(fitting, TrimmedMean) and fitting.weighted)
            spoilt = 0 if by_weight else largest_excluded(fitting, n)
            unusable[n - spoilt :] = torch.nan
            line = normal(1, D) * torch.arange(1.0, n + 1)[:, None]
            for values in (distinct, distinct[:1].repeat(n, 1), halves, torch.zeros(n, D), unusable, line.float()):
                answer = ask(fitting, values)
                assert torch.isfinite(answer.vector).all()
                check_diagnostics(fitting, answer, values)
            assert set(range(n - spoilt, n)) <= set(ask(fitting, unusable).excluded)
        if n == 1 and smallest.get(0) == 1:
            near(ask(with_f(rule, 0), distinct).vector, agreed(rule, distinct[0]), 0.01)
    # Without bad rows one or, where a definition needs neighbours, three to five rows are enough.
    assert smallest[0] <= (5 if getattr(rule, "variant", "") == "code-2021-05" else 4)
    assert all(part.largest_f(smallest[0]) >= 0 for part in parts_of(with_f(rule, 0)))


WITH_F = [part for rule in RULE_LIST for part in parts_of(rule) if hasattr(part, "f")]


@pytest.mark.parametrize("part", WITH_F, ids=repr)
def test_f_out_of_range_is_a_value_error_with_n_f_and_the_range(part: Any) -> None:
    top = part.largest_f(N)
    rule = with_f(part, top + 1)
    if isinstance(rule, Mixing):
        rule = rule >> Median()
    message = rf"f={top + 1} is out of range for n={N} rows; f must be between 0 and {top}"
    with pytest.raises(ValueError, match=message):
        ask(rule, honest())
    for wrong in (-1, 1.5, True, "2", None):
        with pytest.raises(ConfigError, match="f must be a whole number >= 0"):
            dataclasses.replace(part, f=wrong)


@pytest.mark.parametrize("part", WITH_F, ids=repr)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_whole_numbers_of_numpy_are_taken(part: Any, kind: Any) -> None:
    taken = dataclasses.replace(part, f=kind(BAD))
    assert taken == part
    assert type(taken.f) is int
    assert RULES.table(taken) == RULES.table(part)


@pytest.mark.parametrize("name", TABLE)
def test_unknown_parameters_name_the_nearest(name: str) -> None:
    (part,) = [part for part in parts_of(TABLE[name][0]) if RULES.name(part) == name][:1]
    table = RULES.table(part)
    assert RULES.build(table) == part
    fields = [spec.name for spec in dataclasses.fields(part)]
    for field in fields:
        with pytest.raises(ConfigError, match=f"{name}.*no parameter '{field}z'; did you mean '{field}'"):
            RULES.build({**table, f"{field}z": 1})
    with pytest.raises(ConfigError, match=r"no parameter 'qqqq'; (known: |it has no parameters)"):
        RULES.build({**table, "qqqq": 1})


@every
def test_tables_round_trip(rule: Rule) -> None:
    tables = pipeline_tables(rule)
    assert pipeline(tables) == rule
    assert pipeline_tables(pipeline(tables)) == tables


# 10. Documentation


@pytest.mark.parametrize("name", TABLE)
def test_docstrings_hold_what_the_list_shows(name: str) -> None:
    (entry,) = [entry for entry in RULES.entries() if entry.name == name]
    # "Knows" is for attacks, "Sums" for what can be computed from sums.
    (part,) = [part for part in parts_of(TABLE[name][0]) if RULES.name(part) == name][:1]
    missing = {"Knows"} if part.sums else {"Knows", "Sums"}
    labels = [label for label in LABELS if label not in missing]
    assert list(entry.card) == ["Formula", *labels]
    assert all(entry.card.values())
    assert entry.summary.endswith(".")
    text = inspect.getdoc(RULES[name]) or ""
    places = [text.index(f"\n{label}: ") for label in labels]
    assert places == sorted(places)
    assert ">>> " in text, "an example that is executed"


# 11. Memory


class Watched(HeldUpdates):
    """Rows of which never more than ``limit`` entries may be asked for at a time."""

    def __init__(self, values: Tensor, limit: int, clients: Tensor | None = None, widest: list[int] | None = None):
        n, d = values.shape
        super().__init__((n, d), values.dtype, values.device, clients, layout_of(d), None)
        self.values, self.limit, self.widest = values, limit, widest if widest is not None else [0]

    def _answer(self, values: Tensor) -> Tensor:
        self.widest.append(values.numel())
        assert values.numel() <= self.limit, f"{list(values.shape)} entries at once"
        return values.clone()

    def part(self, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        return self._answer(self.values[:, start:stop] if rows is None else self.values[rows, start:stop])

    def columns(self, index: Tensor) -> Tensor:
        return self._answer(self.values[:, index])

    def select(self, rows: Tensor) -> Watched:
        return Watched(self.values[rows], self.limit, self._clients[rows], self.widest)

    def materialise(self) -> Tensor:
        return self._answer(self.values)


class Largest(TorchDispatchMode):
    """The size in bytes of the largest tensor that any operation makes."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given, self.bytes = given.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() != self.given:
                    self.bytes = max(self.bytes, storage.nbytes())
        return made


@pytest.mark.parametrize("rule", [rule for rule in RULE_LIST if getattr(rule, "features", "") != "full"], ids=repr)
def test_no_second_matrix_is_ever_held(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    d, width = 40000, 400
    values = honest(d=d)
    # LASA reads a whole row at a time, DnC a sample of its own.
    limit = max(N * width, d, 10000 * N if isinstance(rule, DnC) else 0)
    rows = Watched(values, limit)
    sizes = {"COLUMN_BYTES": 4 * N * width, "CHUNK": width, "NORM_CHUNK": width, "SLICE": N * width}
    for name, module in list(sys.modules.items()):
        if name.startswith("bezoar."):
            for constant, size in sizes.items():
                if hasattr(module, constant):
                    monkeypatch.setattr(module, constant, size)
    context = knowledge(d=d)
    with Largest(values) as largest:
        answer = rule.aggregate(rows, {}, context)
    assert torch.isfinite(answer.vector).all()
    assert max(rows.widest) > 0
    # Vectors [d] in double precision are no matrix.
    assert largest.bytes <= 8 * limit
    assert limit < N * d / 3
