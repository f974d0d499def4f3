"""Parts that claim to work from sums, computed through an interface that hands out nothing but sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from docs.make_pages import built
from torch import Tensor

from bezoar.aggregation import (
    ARC,
    NNM,
    RULES,
    Bucketing,
    CenteredClipping,
    Clip,
    Context,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    Part,
    PriorMean,
    Rule,
    SignVote,
    Sums,
    TrimmedMean,
)
from bezoar.experiments.defence import defence
from bezoar.priors import Groups
from bezoar.servers import SparseFed
from bezoar.updates.base import Needs

N, D = 11, 7


class Behind:
    """Clients behind secure aggregation: whatever is computed of a single row can not be seen, only its sum."""

    def __init__(self, rows: Tensor, weights: Tensor) -> None:
        self._rows, self._weights, self.n = rows, weights, len(rows)
        self.asked = 0

    def total(self, send: Callable[[Tensor, Tensor], Tensor], group: Tensor | None = None) -> Tensor:
        """The sum of what clients (of a group of at least two) send, each from its own row and weight."""
        self.asked += 1
        members = torch.arange(self.n) if group is None else group
        assert len(members) > 1
        return torch.stack([send(self._rows[i], self._weights[i]) for i in members]).sum(0)


def clip(x: Tensor, radius: float) -> Tensor:
    return x * min(1.0, radius / float(x.norm()))


def mean(clients: Behind, context: Context) -> Tensor:
    return clients.total(lambda x, w: x) / clients.n


def weighted_mean(clients: Behind, context: Context) -> Tensor:
    both = clients.total(lambda x, w: torch.cat([w * x, w[None]]))
    return both[:-1] / both[-1]


#: Two groups that fall with different probabilities: weights are not equal.
TOLD = Groups((4, N - 4), p=(0.1, 0.4))


def told(clients: Behind, context: Context) -> Tensor:
    """Every client knows its own public weight."""
    own = iter(TOLD.weights().tolist())
    return clients.total(lambda x, w: next(own) * x)


def clipped_mean(clients: Behind, context: Context) -> Tensor:
    return clients.total(lambda x, w: clip(x, 1.5)) / clients.n


def votes(clients: Behind, context: Context) -> Tensor:
    return clients.total(lambda x, w: x.sign()).sign()


def centred(clients: Behind, context: Context) -> Tensor:
    assert context.last_aggregate is not None
    centre = context.last_aggregate.clone()
    for _ in range(3):
        at = centre.clone()
        centre += clients.total(lambda x, w, at=at: clip(x - at, 1.0)) / clients.n  # type: ignore[misc]
    return centre


def weiszfeld(clients: Behind, context: Context) -> Tensor:
    point = mean(clients, context)
    for _ in range(400):
        at = point.clone()

        def send(x: Tensor, w: Tensor, at: Tensor = at) -> Tensor:
            away = (x - at).norm()
            return torch.cat([(x - at) / away, 1 / away[None]])

        both = clients.total(send)
        point = at + both[:-1] / both[-1]
    return point


def trust(clients: Behind, context: Context) -> Tensor:
    root = context.root_gradient
    assert root is not None

    def send(x: Tensor, w: Tensor) -> Tensor:
        score = torch.relu(x @ root / x.norm() / root.norm())
        sent = score * root.norm() / x.norm() * x
        # What the docstring says that clients would have to prove.
        assert torch.isclose(sent.norm(), score * root.norm())
        assert torch.isclose(sent @ root, score**2 * root.norm() ** 2)
        return torch.cat([sent, score[None]])

    both = clients.total(send)
    return both[:-1] / both[-1]


def grouped_median(clients: Behind, context: Context) -> Tensor:
    order = torch.randperm(N - 1, generator=torch.Generator().manual_seed(5))
    groups = [clients.total(lambda x, w: clip(x, 1.5), members) / len(members) for members in order.split(2)]
    return torch.stack(groups).median(0).values


#: Rules, how to compute them from sums, and how many sums that takes.
PROTOCOLS: list[tuple[Rule, Callable[[Behind, Context], Tensor], Sums, int]] = [
    (Mean(), mean, Sums.ONE, 1),
    (Mean(weighted=True), weighted_mean, Sums.ONE, 1),
    (PriorMean(TOLD), told, Sums.ONE, 1),
    (Clip(1.5) >> Mean(), clipped_mean, Sums.ONE, 1),
    (SignVote(), votes, Sums.ONE, 1),
    (FLTrust(), trust, Sums.ONE, 1),
    (CenteredClipping(radius=1.0, iterations=3), centred, Sums.TURNS, 3),
    (GeometricMedian(), weiszfeld, Sums.TURNS, 401),
    (Clip(1.5) >> Bucketing(s=2) >> Median(), grouped_median, Sums.GROUPS, 5),
]


@pytest.mark.parametrize(("rule", "protocol", "sums", "asked"), PROTOCOLS, ids=lambda x: getattr(x, "name", ""))
def test_what_claims_sums_is_computed_from_them(
    rule: Rule, protocol: Callable[[Behind, Context], Tensor], sums: Sums, asked: int
) -> None:
    assert rule.sums is sums
    draws = torch.Generator().manual_seed(1)
    # Ten rows where groups are of two, and an odd number of groups, so that the median is one of them.
    n = N - 1 if sums is Sums.GROUPS else N
    rows = torch.randn(n, D, generator=draws, dtype=torch.float64) + 0.5
    weights = torch.rand(n, generator=draws, dtype=torch.float64)
    context = Context(client_weights=weights, root_gradient=rows[:3].mean(0), last_aggregate=rows[0] / 2)
    clients = Behind(rows, weights)
    found = protocol(clients, context)
    wanted = rule.aggregate(rows, {}, context, torch.Generator().manual_seed(5)).vector
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6 if isinstance(rule, GeometricMedian) else 1e-12)
    assert clients.asked == asked


def parts(rule: Rule) -> list[Part]:
    return [*getattr(rule, "mixings", ()), getattr(rule, "rule", rule)]


def test_every_claim_has_a_protocol_here() -> None:
    shown = {RULES.name(part) for rule, *_ in PROTOCOLS for part in parts(rule)} - {"median"}
    assert shown == {name for name in RULES if built(name).sums is not None}


@pytest.mark.parametrize("name", list(RULES))
def test_who_needs_nothing_of_single_updates_works_from_sums(name: str) -> None:
    part = built(name)
    if part.needs is Needs.NONE:
        assert part.sums is not None
    if part.sums is None:
        assert part.needs is not Needs.NONE


@pytest.mark.parametrize(
    ("rule", "sums"),
    [
        (Mean(weighted=True, cap=0.5), None),
        (CenteredClipping(iterations=1), Sums.ONE),
        (Clip(1.0) >> CenteredClipping(iterations=2), Sums.TURNS),
        (Clip(1.0) >> TrimmedMean(f=1), None),
        (ARC(f=1) >> Mean(), None),
        (NNM(f=1) >> Bucketing(s=2) >> Mean(), None),
        (Bucketing(s=2) >> NNM(f=1) >> Krum(f=1), Sums.GROUPS),
        # A group of one is one client.
        (Bucketing(s=1) >> Median(), None),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_a_pipeline_is_as_open_as_its_parts(rule: Rule, sums: Sums | None) -> None:
    assert rule.sums is sums


def test_sparsefed_is_a_function_of_the_sums_alone() -> None:
    """Rounds of SparseFed on sums of clipped updates are those of the simulator, to the last bit of float64's mean."""
    chosen = defence({"preset": "sparsefed", "radius": 1.5, "k": 2})
    assert chosen.sums is Sums.ONE
    draws = torch.Generator().manual_seed(2)
    model, mirror = torch.zeros(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    state, mirrored = {}, {}  # type: ignore[var-annotated]
    server = SparseFed(k=2)
    for _ in range(20):
        rows = torch.randn(N, D, generator=draws, dtype=torch.float64)
        step = chosen.server.step(chosen.rule(1.0).aggregate(rows).vector, 0.1, state)
        other = server.step(clipped_mean(Behind(rows, torch.ones(N)), Context()), 0.1, mirrored)
        assert torch.equal(step.index, other.index)  # type: ignore[arg-type]
        step.apply_(model)
        other.apply_(mirror)
        state, mirrored = dict(step.state), dict(other.state)
    assert torch.allclose(model, mirror, rtol=0, atol=1e-13)
