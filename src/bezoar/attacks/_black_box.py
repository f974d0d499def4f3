"""An attack that asks the defence and nothing else: random search within a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bezoar.aggregation.base import Aggregate, Context, Rule, check_count
from bezoar.attacks._probe import FEW, SAMPLE, Probe, column_spread
from bezoar.attacks.base import AttackContext, Goal, Knowledge, Sent, Tests, UpdateAttack, honest_mean, usable
from bezoar.attacks.pgd import aux_points
from bezoar.errors import ConfigError
from bezoar.seeding import generator
from bezoar.updates.base import Needs, Updates
from bezoar.updates.convert import as_updates
from bezoar.updates.stacked import Stacked

#: Shares of the way to the edge of the budget at which plain directions are tried first.
SHARES = (1.0, 0.3, 0.1)

#: By how much a step grows when it succeeds and shrinks when it fails: balanced if one of five succeeds.
GROW, SHRINK = 1.5, 1.5**-0.25


@dataclass(frozen=True)
class BlackBox(UpdateAttack):
    r"""Random search for the row that hurts the defence most, which is only asked, never looked into.

    .. math:: \max_u \bigl\| F(x_S \cup q \text{ times } u) - \bar x_S \bigr\| \quad \text{subject to the budget}

    Directions are mixtures of the honest rows' differences from their mean, the mean, the standard deviation by column,
    the sign of the mean and ``random`` Gaussian vectors, so that a trial costs little (see the optimised ALIE). A point
    is a direction and a share of the way to the edge of the budget. Half of the trials go to plain directions and to
    random ones; from the ``restarts`` best of them the search goes on by steps of random size and direction that are
    kept if they help, longer after a success and shorter after a failure. All attackers send the same vector.

    Args:
        objective: ``"deviation"``: the distance of the defence's answer from the honest mean; ``"loss"``: minus the
            loss on ``aux`` test points with wrong labels after the server's step. The latter takes a whole aggregation
            and a pass through the model a trial; its gradient at the current model is one more direction, tried first.
        budget: what bounds u. ``"distance"``: at most ``size`` times the honest rows' root mean square distance from
            their mean, measured from there; ``"norm"``: at most ``size`` times the longest honest row;
            ``"min-max"``: from no honest row farther than ``size`` times the largest distance between two of them.
        size: see ``budget``.
        trials: questions to the defence where these are cheap.
        whole_trials: the same where every question is a whole aggregation.
        restarts: points from which the search goes on.
        random: Gaussian vectors among the directions.
        aux: number of test points for ``"loss"``.
        sample: columns seen by rules that read columns; the two best rows are then confirmed on all of them.

    Knows: the honest updates, and the defence as a function.
    Cost: one Gram matrix, a pass over the columns and 2 + ``random`` inner products a row, then O(n^3) a trial and, for
        rules that read columns, n x ``sample`` numbers.
    Peers: none of ByzFL, Blades and FLPoison has one; their optimised attacks search along one given direction.
    Reference: random search with the one-fifth rule, Rechenberg: Evolutionsstrategie, 1973. The min-max budget is that
        of Shejwalkar, Houmansadr: Manipulating the Byzantine, NDSS 2021.

    >>> from bezoar.aggregation import Mean
    >>> honest = torch.tensor([[1.0, 2.0], [3.0, 4.0], [2.0, 3.0]])
    >>> sent = BlackBox(budget="norm", size=2.0)(honest, n=4, q=1, defence=Mean())
    >>> torch.allclose(sent, torch.tensor([[-5.547, -8.3205]]), atol=1e-3)
    True
    """

    least: ClassVar[Knowledge] = Knowledge.DEFENCE
    needs: ClassVar[Needs] = Needs.GRAM | Needs.BLOCKS

    objective: Literal["deviation", "loss"] = "deviation"
    budget: Literal["distance", "norm", "min-max"] = "distance"
    size: float = 1.0
    trials: int = 200
    whole_trials: int = FEW
    restarts: int = 3
    random: int = 2
    aux: int = 100
    sample: int = SAMPLE

    def __post_init__(self) -> None:
        if self.objective not in ("deviation", "loss"):
            raise ConfigError(f"black-box: objective must be 'deviation' or 'loss', got {self.objective!r}")
        if self.budget not in ("distance", "norm", "min-max"):
            raise ConfigError(f"black-box: budget must be 'distance', 'norm' or 'min-max', got {self.budget!r}")
        if not (self.size > 0 and math.isfinite(self.size)):
            raise ConfigError(f"black-box: size must be a positive number, got {self.size}")
        for name in ("trials", "whole_trials", "restarts", "aux", "sample"):
            check_count("black-box", name, getattr(self, name), least=1)
        check_count("black-box", "random", self.random)

    @property
    def targeted(self) -> bool:  # type: ignore[override]
        """Whether there are points to be misclassified."""
        return self.objective == "loss"

    def goal(self, tests: Tests, seed: int) -> Goal | None:
        return aux_points(tests, self.aux, seed) if self.targeted else None

    def rows(self, view: Updates, defence: Rule, context: AttackContext) -> Stacked:
        return self.send(view, defence, context).rows

    def send(self, view: Updates, defence: Rule, context: AttackContext) -> Sent:
        draws = generator(context.seed, "attack", context.round)
        honest = usable(view)
        spread, sign = column_spread(honest), honest_mean(honest).sign()
        d, importance = view.shape[1], spread.double().square()
        noise = torch.randn(self.random, d, generator=draws).to(view.device, view.dtype)
        vectors = torch.cat([spread[None], sign[None], noise])
        guided = self.objective == "loss"
        if guided:
            vectors = torch.cat([vectors, _gradient(context)[None].to(vectors)])
        probe = Probe(view, vectors, defence, context, importance=importance, sample=self.sample)
        if probe.empty:
            return Sent(probe.stack(probe.mean), context.state, {"deviation": 0.0})
        value = _Loss(probe, context) if guided else probe.deviation
        cheap = probe.cheap and not guided
        budget, atoms = _Budget(self.budget, self.size, probe), _atoms(probe, last_first=guided)
        search = _Search(budget, atoms, value, draws, guided=guided)
        found = search.run(self.trials if cheap else self.whole_trials, self.restarts)
        if not guided:
            rows, reached, _ = probe.settle(found[:2])
            return Sent(rows, context.state, {"deviation": reached})
        mix, reached = found[0]
        return Sent(probe.stack(mix), context.state, {"loss": -reached})


def black_box(
    defence: Callable[[Tensor], Any], honest: Any, *, q: int, attack: BlackBox | None = None, seed: int = 0
) -> Any:
    """The vector [d] with which ``q`` attackers hurt any function from updates [n, d] to a vector [d] most.

    Each of the attack's ``trials`` calls ``defence`` once, on a matrix with the attackers' rows at the end. ``honest``
    is of any kind that rules take, and so is the answer.

    >>> def coordinate_median(rows):
    ...     return rows.median(dim=0).values
    >>> black_box(coordinate_median, torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), q=3).shape
    torch.Size([5])
    """
    chosen = attack or BlackBox()
    if chosen.objective != "deviation":
        raise ConfigError("black_box: there is no model here, objective must be 'deviation'")
    rows, restore = as_updates(honest)
    asking = dataclasses.replace(chosen, whole_trials=chosen.trials)
    sent = asking(rows, n=len(rows) + q, q=q, defence=_Asked(defence), seed=seed)
    return restore(sent[0])


@dataclass(frozen=True)
class _Asked(Rule):
    """Any function from a matrix [n, d] to a vector [d]."""

    ask: Callable[[Tensor], Any]

    # Nobody knows what it looks at.
    needs: ClassVar[Needs] = Needs.BLOCKS | Needs.DOT
    spare: ClassVar[bool] = True

    def _run(self, rows: Updates, state: Any, context: Context, generator: torch.Generator | None) -> Aggregate:
        vector = torch.as_tensor(self.ask(rows.materialise().clone()))
        if vector.shape != (rows.shape[1],):
            raise ConfigError(f"black_box: the defence must answer [{rows.shape[1]}], got {list(vector.shape)}")
        return Aggregate(vector.to(rows.device, rows.dtype))


def _gradient(context: AttackContext) -> Tensor:
    """The gradient [d] of the loss on the attackers' points at the current model; zero where it is no number."""
    goal = _aim(context)
    context.scratch.load(context.weights)
    gradient = context.scratch.differentiate(context.loss_fn, goal.inputs, goal.labels).clone()
    return gradient if bool(torch.isfinite(gradient).all()) else torch.zeros_like(gradient)


def _aim(context: AttackContext) -> Goal:
    if context.goal is None:
        raise ConfigError("black-box: objective='loss' needs AttackContext.goal: what shall be misclassified")
    return context.goal


def _atoms(probe: Probe, *, last_first: bool = False) -> Tensor:
    """What directions are mixed from, as mixes [a, n_h + k] of length one: the plain ones come first.

    With ``last_first`` the probe's last vector comes before all others.
    """
    split, k = len(probe.view), len(probe.vectors)
    finite = probe.view.finite().nonzero().flatten()
    units = torch.eye(probe.span, dtype=torch.float64, device=probe.mean.device)
    vectors = units[split : split + k]
    order = [vectors[-1:], probe.mean[None], vectors[:-1]] if last_first else [probe.mean[None], vectors]
    atoms = torch.cat([*order, units[finite] - probe.mean])
    length = torch.linalg.vector_norm(probe.mix(atoms), dim=1)
    atoms = atoms[length > 0] / length[length > 0, None]
    return atoms if len(atoms) else torch.zeros_like(probe.mean)[None]


class _Budget:
    """Where the rows may lie: along every direction from a start up to an edge."""

    def __init__(self, kind: str, size: float, probe: Probe) -> None:
        self.kind, self.probe = kind, probe
        finite = probe.view.finite().nonzero().flatten()
        units = torch.eye(probe.span, dtype=torch.float64, device=probe.mean.device)
        self.apart = probe.mix(units[finite] - probe.mean)
        # The mean of equal rows is any of them, but not bit by bit; there is no room about it for a rounding error.
        self.equal = kind != "norm" and bool((probe.mix(units[finite]) == probe.mix(units[finite[0]])).all())
        self.centre = units[finite[0]] if self.equal else probe.mean
        # Rows are rounded when they are written down; they shall be within the budget even so.
        size *= 1 - (1e-9 if probe.view.dtype == torch.float64 else 64 * torch.finfo(probe.view.dtype).eps)
        if kind == "norm":
            self.radius = size * float(torch.linalg.vector_norm(probe.mix(units[finite]), dim=1).max())
        elif kind == "distance":
            self.radius = size * float(self.apart.square().sum(1).mean().sqrt())
        else:
            self.radius = size * float(torch.cdist(self.apart, self.apart).max())

    def row(self, direction: Tensor, share: float) -> Tensor:
        """The mix [n_h + k] at ``share`` of the way along ``direction`` [n_h + k]."""
        if self.equal:
            return self.centre
        start = torch.zeros_like(self.centre) if self.kind == "norm" else self.centre
        place = self.probe.mix(direction)
        square = float(place @ place)
        if not square > 0:
            return start
        if self.kind != "min-max":
            return start + direction * (share * self.radius / math.sqrt(square))
        along = self.apart @ place
        room = along.square() + square * (self.radius**2 - self.apart.square().sum(1))
        reach = float(((along + room.clamp(min=0).sqrt()) / square).min()) if bool((room >= 0).all()) else 0.0
        return start + direction * (share * max(reach, 0.0))


@dataclass(frozen=True)
class _Point:
    """A direction as weights [a] of the atoms, a share of the way to the edge, the mix there and its value."""

    weights: Tensor
    share: float
    mix: Tensor
    value: float


class _Search:
    """Random search over directions and shares."""

    def __init__(
        self,
        budget: _Budget,
        atoms: Tensor,
        value: Callable[[Tensor], float],
        draws: torch.Generator,
        *,
        guided: bool = False,
    ) -> None:
        """``guided``: the first atom is a direction known to be good, and which way."""
        self.budget, self.atoms, self.value, self.draws, self.guided = budget, atoms, value, draws, guided

    def run(self, trials: int, restarts: int) -> list[tuple[Tensor, float]]:
        """The best (mix, value) of every restart, the best first."""
        first = max(1, trials // 2)
        points = sorted((self._ask(*start) for start in self._starts(first)), key=lambda point: -point.value)
        points = points[: min(restarts, max(1, trials - first))]
        left, count = trials - first, len(points)
        shares = [left // count + (i < left % count) for i in range(count)]
        best = [self._climb(point, share) for point, share in zip(points, shares, strict=True)]
        return [(point.mix, point.value) for point in sorted(best, key=lambda point: -point.value)]

    def _starts(self, count: int) -> list[tuple[Tensor, float]]:
        units = torch.eye(len(self.atoms), dtype=torch.float64, device=self.atoms.device)
        known, others = (units[:1], units[1:4]) if self.guided else (units[:0], units[:3])
        # The mean, the spread and the sign, of either sign; the others are as good as any.
        plain = [sign * weights for weights in others for sign in (-1, 1)]
        starts = [(weights, share) for weights in known for share in SHARES]
        starts += [(weights, share) for share in SHARES for weights in plain]
        starts = starts[: max(1, 2 * count // 3)]
        while len(starts) < count:
            starts.append((self._normal(), float(torch.rand(1, generator=self.draws, dtype=torch.float64))))
        return starts

    def _normal(self) -> Tensor:
        noise = torch.randn(len(self.atoms), generator=self.draws, dtype=torch.float64).to(self.atoms.device)
        return noise / math.sqrt(len(self.atoms))

    def _climb(self, point: _Point, trials: int) -> _Point:
        size = 0.5
        for _ in range(trials):
            weights = point.weights + size * self._normal()
            turn = float(torch.randn(1, generator=self.draws, dtype=torch.float64))
            tried = self._ask(weights / weights.norm(), min(1.0, point.share * math.exp(size * turn)))
            if tried.value > point.value:
                point, size = tried, size * GROW
            else:
                size *= SHRINK
        return point

    def _ask(self, weights: Tensor, share: float) -> _Point:
        mix = self.budget.row(weights @ self.atoms, share)
        return _Point(weights, share, mix, self.value(mix))


class _Loss:
    """Minus the loss on the attackers' points after the server's step; minus infinity if there would be none."""

    def __init__(self, probe: Probe, context: AttackContext) -> None:
        self.probe, self.context, self.aim = probe, context, _aim(context)

    def __call__(self, mix: Tensor) -> float:
        answer = self.probe.answer(self.probe.stack(mix))
        if answer is None or not torch.isfinite(answer.vector).all():
            return -math.inf
        context = self.context
        step = context.server.step(answer.vector, context.server_lr, context.server_state)
        model, weights = context.scratch, context.weights.clone()
        step.apply_(weights)
        model.load(weights)
        with torch.no_grad():
            loss = float(context.loss_fn(model.module(self.aim.inputs), self.aim.labels).mean())
        return -loss if math.isfinite(loss) else -math.inf
