"""What every robust rule shares: its kinds, the gate against hostile rows, pipelines.

A rule is a frozen dataclass that stores its parameters and says what it ``needs`` of the updates. Checking f against
n, excluding hostile rows, converting kinds and combining rows happen here, once, for all rules.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from bezoar import seeding
from bezoar.errors import ConfigError, HostileRowsError
from bezoar.kernels.columns import Finish, NotFiniteError, over_sorted
from bezoar.kernels.gram import Tall
from bezoar.priors import Family, HonestPrior
from bezoar.updates.base import Needs, Updates
from bezoar.updates.convert import as_updates
from bezoar.updates.held import HeldUpdates
from bezoar.updates.mixed import Mixed

State = Mapping[str, Tensor]

#: Columns are reduced in blocks of this size: small enough for caches and for a tight memory budget.
COLUMN_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Context:
    """What the server knows beside the updates; rules use what they need of it.

    Attributes:
        round: number of the round; rules that draw without a generator derive their stream from it.
        model: the global model [d].
        client_weights: what every client claims to weigh, e.g. its number of samples [n], one a row.
        root_gradient: the server's own update [d], from data it trusts.
        last_aggregate: the previous round's aggregate [d].
        claims: the client weights of all rows [n] and which of them remain [m], where some were excluded.
        hostile: ids of the clients whose rows were excluded as hostile before the rule ran.
    """

    round: int = 0
    model: Tensor | None = None
    client_weights: Tensor | None = None
    root_gradient: Tensor | None = None
    last_aggregate: Tensor | None = None
    claims: tuple[Tensor, Tensor] | None = None
    hostile: tuple[int, ...] = ()

    def select(self, kept: Tensor) -> Context:
        """The same knowledge about the rows ``kept`` [m] only."""
        if self.client_weights is None:
            return self
        kept = kept.to(self.client_weights.device)
        claims = (self.client_weights, kept)
        return dataclasses.replace(self, client_weights=self.client_weights[kept], claims=claims)


@dataclass(frozen=True)
class Box:
    """What a projection into a box did.

    Attributes:
        diagonal: the box's largest extent, the norm of its sides.
        moved: how many coordinates lay outside.
    """

    diagonal: float
    moved: int


@dataclass(frozen=True)
class Aggregate:
    """A rule's answer with its diagnostics.

    Attributes:
        vector: the aggregate [d].
        state: what the rule remembers; hand it to the next call.
        weights: weight of every row in ``vector`` [n] float64, where the rule is a weighted sum of rows.
        scores: the rule's score of every row [n] float64 (NaN for excluded rows), where it has one.
        selected: which rows the rule went on with [n] bool, where it selects rows.
        excluded: row index -> why it was left out, by the gate before the rule ran or by the rule itself.
        scales: factor by which pre-aggregation scaled every row [n], where it only scaled (clipping).
        noise: standard deviation of the noise in every coordinate of ``vector``; ``weights`` leave it out.
        box: what a projection into a box did (:class:`bezoar.aggregation.SIP`).
    """

    vector: Tensor
    state: State = field(default_factory=dict)
    weights: Tensor | None = None
    scores: Tensor | None = None
    selected: Tensor | None = None
    excluded: Mapping[int, str] = field(default_factory=dict)
    scales: Tensor | None = None
    noise: float = 0.0
    box: Box | None = None

    @property
    def clipped(self) -> Tensor | None:
        """The share of rows that pre-aggregation shortened, of those that it read; None where it did not only scale."""
        if self.scales is None:
            return None
        # Rows that were left out before the pipeline have scale 0.
        used = self.scales > 0
        return (used & (self.scales < 1)).sum() / used.sum().clamp(min=1)

    def _spread(self, kept: Tensor, n: int, excluded: Mapping[int, str]) -> Aggregate:
        """The same answer in the numbering of all ``n`` rows, of which ``kept`` took part."""

        def widen(values: Tensor | None, fill: float) -> Tensor | None:
            if values is None:
                return None
            wide = torch.full((n,), fill, dtype=values.dtype, device=values.device)
            wide[kept] = values
            return wide

        return dataclasses.replace(
            self,
            weights=widen(self.weights, 0.0),
            scores=widen(self.scores, float("nan")),
            selected=widen(self.selected, False),
            scales=widen(self.scales, 0.0),
            excluded={**excluded, **{int(kept[row]): why for row, why in self.excluded.items()}},
        )


@dataclass(frozen=True)
class Constant:
    r"""A robustness constant kappa: :math:`\|F(x) - \bar x_S\|^2 \le \kappa \operatorname{Var}_S` for all honest S.

    Attributes:
        value: kappa for the n, f and q asked for; infinity if nothing is promised.
        formula: where the value comes from, in n, f (declared) and q (actual number of bad rows).
        source: "exact" (proved in docs/robustness.md, and inputs attain it), "proved" (there, as an upper bound),
            "published" (by the rule's authors or the literature), "unverified" (recalled, not proved here).
    """

    value: float
    formula: str
    source: Literal["exact", "proved", "published", "unverified"]


class Sums(Enum):
    """What a server must see that learns no single client's update (secure aggregation).

    Every client computes what it sends from its own update, and from what the server has made public.
    """

    ONE = "one sum"
    TURNS = "sums in turn"
    GROUPS = "sums of groups"


@dataclass(frozen=True)
class Part(ABC):
    """A building block of a defence: a mixing or a rule."""

    needs: ClassVar[Needs]

    #: What sums the part can be computed from; None: it must see single updates.
    sums: ClassVar[Sums | None] = None

    #: Whether the server must hand over an update of its own in ``Context.root_gradient``.
    uses_root: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Whole numbers of NumPy become plain ones, and f is checked; parts with more parameters go on from here."""
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, np.integer):
                object.__setattr__(self, spec.name, int(value))
            if spec.name == "f":
                check_count(self.name, "f", int(value) if isinstance(value, np.integer) else value)

    @property
    def tolerated(self) -> int | None:
        """The declared number f of bad clients, None for parts without one."""
        value: int | None = getattr(self, "f", None)
        return value

    def largest_f(self, n: int) -> int:
        """The largest f that n rows allow."""
        return (n - 1) // 2

    def check(self, n: int) -> None:
        """Raise ``ConfigError`` (a ValueError) unless the parameters fit n rows."""
        f = self.tolerated
        if f is None:
            return
        top = self.largest_f(n)
        if top < 0:
            raise ConfigError(f"{self.name} can not work with n={n} rows: it needs more")
        if f > top:
            raise ConfigError(f"{self.name}: f={f} is out of range for n={n} rows; f must be between 0 and {top}")

    def withstands(self, n: int) -> int:
        """How many bad rows of n can not drive what comes out arbitrarily far, with the best f for it."""
        return (n - 1) // 2 if self.tolerated is None else min((n - 1) // 2, self.largest_f(n))

    def without(self, excluded: int) -> Self:
        """This part for the rows that remain when ``excluded`` bad rows are gone: f becomes f - excluded."""
        f = self.tolerated
        return self if f is None or excluded == 0 else dataclasses.replace(self, **{"f": f - excluded})

    def within(self, kept: Tensor, n: int) -> Self:
        """This part for the rows ``kept`` [m] of n; parts that name a row renumber it here."""
        return self.without(n - len(kept))

    def given(self, prior: HonestPrior | Family) -> Self:
        """This part with ``prior`` wherever it, or a part that it holds, has none of its own."""
        filled: dict[str, Any] = {}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.name == "prior" and value is None:
                filled["prior"] = prior
            elif isinstance(value, Part):
                filled[spec.name] = value.given(prior)
            elif isinstance(value, tuple) and any(isinstance(part, Part) for part in value):
                filled[spec.name] = tuple(part.given(prior) for part in value)
        return dataclasses.replace(self, **filled) if filled else self

    @property
    def name(self) -> str:
        """Class name, as in messages and reports."""
        return type(self).__name__


def check_vector(owner: str, name: str, vector: Tensor | None, d: int) -> None:
    """Raise unless ``vector`` [d] is given and finite."""
    if vector is None:
        raise ConfigError(f"{owner} needs {name}, a vector [{d}]")
    if vector.shape != (d,) or not torch.isfinite(vector).all():
        raise ConfigError(f"{owner}: {name} must be a finite vector [{d}], got shape {list(vector.shape)}")


def check_weights(owner: str, weights: Tensor | None, n: int) -> None:
    """Raise unless ``weights`` [n] are given, one a row."""
    if weights is None:
        raise ConfigError(f"{owner} with weighted=True needs weights [{n}], one a row (Context.client_weights)")
    if weights.shape != (n,):
        raise ConfigError(f"{owner}: client weights must be [{n}], one a row, got shape {list(weights.shape)}")


def check_count(owner: str, name: str, value: int, least: int = 0) -> None:
    """Raise unless ``value`` is a whole number >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{owner}: {name} must be a whole number >= {least}, got {value!r}")


#: Gram rules leave out rows longer than this many times the (f+1)-th longest: next to them all digits are lost.
HUGE = 1e6


def gate(
    rows: Updates,
    tolerance: int | None,
    who: str,
    *,
    spare: bool = False,
    huge: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[int, str]]:
    """Rows that hold finite numbers [m], and those that do not with the reason.

    Rows whose client claims a weight in ``weights`` [n] that is none (negative, not finite) count as not finite.
    ``tolerance`` is the smallest declared f (None: fewer than half may be bad; ``spare``: all but one). With ``huge``,
    rows longer than ``huge`` times the (f+1)-th longest are left out as well; there are at most f of them.
    """
    finite = rows.finite().cpu()
    n = len(finite)
    claims = {}
    if weights is not None:
        claimed = weights.double().cpu()
        wrong = finite & ~((claimed >= 0) & (claimed < torch.inf))
        claims = {row: f"claims a weight of {float(claimed[row]):g}" for row in wrong.nonzero().flatten().tolist()}
        finite &= ~wrong
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        limit = (n - 1 if spare else (n - 1) // 2) if tolerance is None else tolerance
        if len(bad) > limit:
            ids = rows.clients[bad[:20]].tolist()
            raise HostileRowsError(
                f"{who}: {len(bad)} of {n} updates are not finite or malformed but at most {limit} may be; "
                f"rows {bad[:20]} (clients {ids}){' ...' if len(bad) > 20 else ''}",
                tuple(bad),
            )
    excluded = {row: claims.get(row) or rows.flaws.get(row, "not finite") for row in bad}
    if huge is not None:
        norms = rows.squared_norms().cpu().sqrt()
        left = ((n - 1) // 2 if tolerance is None else tolerance) - len(bad)
        usual = norms[finite].sort(descending=True).values[min(max(left, 0), int(finite.sum()) - 1)]
        for row in (finite & (norms > huge * usual) & (usual > 0)).nonzero().flatten().tolist():
            excluded[row] = f"norm {float(norms[row]):.1e} is more than {huge:.0e} times that of the others"
            finite[row] = False
    return finite.nonzero().flatten(), dict(sorted(excluded.items()))


def draws(generator: torch.Generator | None, seed: int, purpose: str, context: Context) -> torch.Generator:
    """The caller's generator, or a stream derived from a part's ``seed`` and the round."""
    return generator if generator is not None else seeding.generator(seed, purpose, context.round)


def reduce_sorted(rows: Updates, finish: Finish, chosen: Tensor | None = None) -> Tensor:
    """Apply ``finish`` [c, m] -> [c] to all sorted columns: [d]; of the rows ``chosen`` [m] only if given."""
    if isinstance(rows, HeldUpdates):
        # In one go: between blocks, threads that torch has started for other work would be in the way.
        return over_sorted(rows, finish, chosen).to(rows.dtype)
    return reduce_columns(rows, lambda values: over_sorted(Tall(values), finish), chosen)


def reduce_columns(rows: Updates, reduce: Callable[[Tensor], Tensor], chosen: Tensor | None = None) -> Tensor:
    """Apply ``reduce`` [m, b] -> [b] to all columns, block by block: [d]; to the rows ``chosen`` [m] only if given."""
    vector = torch.empty(rows.shape[1], dtype=rows.dtype, device=rows.device)
    for block in rows.share(COLUMN_BYTES):
        values = block.values if chosen is None else block.values[chosen]
        vector[block.start : block.stop] = reduce(values).to(rows.dtype)
    return rows.spread.join(vector)


@dataclass(frozen=True)
class Rule(Part):
    """Updates in, one vector out."""

    #: A rule that promises nothing against bad rows (the mean) reports any number of unusable ones.
    spare: ClassVar[bool] = False

    #: Whether the rule takes rows for clients: names one, or remembers them by id.
    by_client: ClassVar[bool] = False

    #: Whether the rule reads ``Context.client_weights``; rules that can, have a field of this name. (Not annotated:
    #: dataclasses would put the field of a subclass first.)
    weighted = False

    @property
    def huge(self) -> float | None:
        """Rows longer than this many times the (f+1)-th longest are excluded before the rule runs; None: none are."""
        return HUGE if Needs.GRAM in self.needs else None

    @abstractmethod
    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        """Aggregate rows that are all finite; ``check`` has passed."""

    def _quick(self, rows: Updates) -> Aggregate | None:
        """The answer of a rule that sees for itself that all rows are finite; None if it can not say."""
        return None

    def aggregate(
        self,
        updates: Any,
        state: State | None = None,
        context: Context | None = None,
        generator: torch.Generator | None = None,
    ) -> Aggregate:
        """Aggregate with diagnostics.

        Args:
            updates: [n, d] in any kind that :func:`bezoar.updates.convert.as_updates` reads.
            state: what the previous call returned, for rules with memory.
            context: what the server knows beside the updates.
            generator: source of randomness, for rules that draw.

        Raises:
            ConfigError: parameters out of range for n.
            HostileRowsError: more rows with NaN or infinity than the declared f.
        """
        rows, _ = as_updates(updates)
        n, context = len(rows), context or Context()
        self.check(n)
        rows.require(self.needs, self.name)
        if self.uses_root:
            check_vector(self.name, "Context.root_gradient", context.root_gradient, rows.shape[1])
        if self.weighted:
            check_weights(self.name, context.client_weights, n)
        weights = context.client_weights if self.weighted else None
        quick = self._quick(rows)
        if quick is not None:
            return quick
        kept, excluded = gate(rows, self.tolerated, self.name, spare=self.spare, huge=self.huge, weights=weights)
        part, remaining = self, rows
        if excluded:
            part, remaining, context = self.within(kept, n), rows.select(kept), context.select(kept)
            hostile = tuple(rows.clients[torch.tensor(list(excluded))].tolist())
            context = dataclasses.replace(context, hostile=(*context.hostile, *hostile))
            part.check(len(kept))
        if self.weighted and not (weights is not None and (weights[kept.to(weights.device)] > 0).any()):
            raise ConfigError(f"{self.name}: the clients that remain have no weight; excluded: {excluded}")
        answer = part._run(remaining, state or {}, context, generator)
        if answer.scores is not None:
            # Scores may be what the updates remember (norms, distances); the caller may change his.
            answer = dataclasses.replace(answer, scores=answer.scores.clone())
        return answer._spread(kept, n, excluded) if excluded else answer

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        """What is known about the rule's robustness constant with n rows, f declared and q <= f actual bad rows."""
        return ()

    def withstands(self, n: int) -> int:
        if self.tolerated is not None:
            return super().withstands(n)
        finite = (q for q in range((n - 1) // 2 + 1) if any(c.value < math.inf for c in self.constants(n, q, q)))
        return max(finite, default=0)

    def __call__(
        self,
        updates: Any,
        *,
        weights: Any = None,
        context: Context | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Aggregate: the answer [d] has the kind, dtype and device of the input.

        ``weights`` [n] is short for ``Context(client_weights=...)``.

        Raises:
            ConfigError: ``weights`` for a rule that is not set to use them; otherwise as :meth:`aggregate`.
        """
        rows, restore = as_updates(updates)
        if weights is not None:
            if not self.weighted:
                raise ConfigError(f"{self.name} does not use client weights; rules that can take weighted=True")
            weights = torch.as_tensor(weights, dtype=torch.float64)
            context = dataclasses.replace(context or Context(), client_weights=weights)
        return restore(self.aggregate(rows, context=context, generator=generator).vector)


@dataclass(frozen=True)
class Weighting(Rule):
    """A rule that is a weighted sum of the rows; subclasses give the weights."""

    @abstractmethod
    def weights(self, rows: Updates) -> tuple[Tensor, Tensor | None]:
        """Weights [n] float64 of the rows, and their scores [n] or None."""

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        weights, scores = self.weights(rows)
        return Aggregate(rows.combine(weights), weights=weights, scores=scores)


@dataclass(frozen=True)
class Columnwise(Rule):
    """A rule that looks at one coordinate at a time, given blocks of columns."""

    needs: ClassVar[Needs] = Needs.BLOCKS

    @abstractmethod
    def reduce(self, values: Tensor) -> Tensor:
        """Reduce the columns of ``values`` [n, b] to [b]."""

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        return Aggregate(reduce_columns(rows, self.reduce))


@dataclass(frozen=True)
class Ordered(Columnwise):
    """A rule that looks at the sorted values of one coordinate at a time."""

    @abstractmethod
    def finish(self, ordered: Any) -> Any:
        """One number for every sorted column, [c, n] -> [c].

        ``ordered`` is a NumPy array on a CPU, else a tensor (see :data:`bezoar.kernels.columns.Finish`).
        """

    def reduce(self, values: Tensor) -> Tensor:
        return over_sorted(Tall(values), self.finish)

    def _quick(self, rows: Updates) -> Aggregate | None:
        if not isinstance(rows, HeldUpdates) or rows.flaws:
            return None
        try:
            return Aggregate(reduce_sorted(rows, self.finish))
        except NotFiniteError:
            return None

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        return Aggregate(reduce_sorted(rows, self.finish))


@dataclass(frozen=True)
class Mixing(Part):
    """Rows in, rows out: a pre-aggregator. Ends no pipeline, so it is not a defence by itself."""

    #: Whether a mixed row stands for no client any more.
    regroups: ClassVar[bool] = False

    #: Whether no mixed row can be much longer than the honest ones: what follows then needs no guard against huge rows.
    bounds_norms: ClassVar[bool] = False

    @abstractmethod
    def matrix(self, rows: Updates, context: Context, generator: torch.Generator | None) -> Tensor:
        """The mixing matrix [m, n], or [n] if rows are only scaled (float64)."""

    def apply(self, rows: Updates, context: Context | None = None, generator: torch.Generator | None = None) -> Mixed:
        """The mixed rows, lazily."""
        matrix = self.matrix(rows, context or Context(), generator)
        return Mixed(rows, matrix, torch.arange(len(matrix)) if self.regroups else None)

    def rows_out(self, n: int) -> int:
        """How many rows come out when n go in."""
        return n

    def constants(self, inner: Constant, n: int, f: int, q: int) -> tuple[Constant, ...]:
        """What is known of this mixing of n rows before a rule with the constant ``inner``, at most q rows bad."""
        return ()

    def __call__(self, updates: Any, *, generator: torch.Generator | None = None) -> Any:
        """The mixed rows [m, d], in the kind of the input.

        Raises:
            HostileRowsError: a row is not finite; only a whole pipeline can exclude rows and report them.
        """
        rows, restore = as_updates(updates)
        self.check(len(rows))
        rows.require(self.needs, self.name)
        gate(rows, 0, self.name)
        mixed = self.apply(rows, generator=generator)
        return mixed if isinstance(updates, Updates) else restore(mixed.materialise())

    def __rshift__(self, after: Mixing | Rule) -> Any:
        return _Open((self,)) >> after

    def aggregate(self, *arguments: Any, **options: Any) -> Aggregate:
        """A mixing aggregates nothing: a ConfigError that says how to end it."""
        return _Open((self,)).aggregate()


@dataclass(frozen=True)
class _Open:
    """Mixings that still wait for a rule."""

    mixings: tuple[Mixing, ...]

    def __rshift__(self, after: Mixing | Rule) -> Any:
        if isinstance(after, Pipeline):
            return Pipeline(self.mixings + after.mixings, after.rule)
        if isinstance(after, Rule):
            return Pipeline(self.mixings, after)
        if isinstance(after, Mixing):
            return _Open((*self.mixings, after))
        raise ConfigError(f"a pipeline goes on with a mixing or a rule, got {after!r}")

    def __call__(self, updates: Any) -> Any:
        return self.aggregate()

    def aggregate(self, *arguments: Any, **options: Any) -> Aggregate:
        names = " >> ".join(part.name for part in self.mixings)
        raise ConfigError(f"{names} is no complete defence: end it with a rule, for example {names} >> Mean()")


@dataclass(frozen=True)
class Pipeline(Rule):
    """Mixings, then a rule: ``Clip(5) >> TrimmedMean(f=2)``."""

    mixings: tuple[Mixing, ...]
    rule: Rule

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        total = self.rule.needs
        for part in self.mixings:
            total |= part.needs
        return total

    @property
    def sums(self) -> Sums | None:  # type: ignore[override]
        for part in self.mixings:
            if part.sums is not Sums.ONE:
                # What comes after sums of groups, the server does to them itself.
                return Sums.GROUPS if part.sums is Sums.GROUPS else None
        return self.rule.sums

    @property
    def spare(self) -> bool:  # type: ignore[override]
        return self.rule.spare

    @property
    def uses_root(self) -> bool:  # type: ignore[override]
        return self.rule.uses_root

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        return self.rule.weighted

    @property
    def by_client(self) -> bool:  # type: ignore[override]
        return self.rule.by_client

    @property
    def _regroups(self) -> bool:
        return any(part.regroups for part in self.mixings)

    @property
    def huge(self) -> float | None:
        for part in self.mixings:
            if Needs.GRAM in part.needs:
                return HUGE
            if part.bounds_norms:
                return None
        return self.rule.huge

    @property
    def tolerated(self) -> int | None:
        declared = [part.tolerated for part in (*self.mixings, self.rule) if part.tolerated is not None]
        return min(declared) if declared else None

    def check(self, n: int) -> None:
        m = n
        for part in self.mixings:
            part.check(m)
            m = part.rows_out(m)
        if self._regroups and (self.weighted or self.rule.by_client):
            raise ConfigError(f"{self.name}: {self.rule.name} takes rows for clients, but they are regrouped before it")
        self.rule.check(m)

    def without(self, excluded: int) -> Self:
        return dataclasses.replace(
            self,
            mixings=tuple(part.without(excluded) for part in self.mixings),
            rule=self.rule.without(excluded),
        )

    def within(self, kept: Tensor, n: int) -> Self:
        return dataclasses.replace(
            self,
            mixings=tuple(part.within(kept, n) for part in self.mixings),
            rule=self.rule.within(kept, n),
        )

    def constants(self, n: int, f: int, q: int) -> tuple[Constant, ...]:
        def declared(part: Part) -> int:
            return f if part.tolerated is None else part.tolerated

        sizes = [n]
        for part in self.mixings:
            sizes.append(part.rows_out(sizes[-1]))
        known = self.rule.constants(sizes.pop(), declared(self.rule), q)
        for part in reversed(self.mixings):
            m = sizes.pop()
            known = tuple(outer for inner in known for outer in part.constants(inner, m, declared(part), q))
        return known

    @property
    def name(self) -> str:
        return " >> ".join(part.name for part in (*self.mixings, self.rule))

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        scales: Tensor | None = None
        for i, part in enumerate(self.mixings):
            mixed = part.apply(rows, context, generator)
            if mixed.scales_rows and (i == 0 or scales is not None):
                scales = mixed.matrix if scales is None else scales * mixed.matrix
            else:
                scales = None
            rows = mixed
        answer = self.rule._run(rows, state, context, generator)
        weights = answer.weights
        for _ in self.mixings:
            assert isinstance(rows, Mixed)
            if weights is not None:
                weights = weights * rows.matrix if rows.scales_rows else weights @ rows.matrix
            rows = rows.base
        answer = dataclasses.replace(answer, weights=weights, scales=scales)
        if self._regroups:
            # Scores of buckets are no scores of clients.
            answer = dataclasses.replace(answer, scores=None, selected=None, excluded={})
        return answer

    def __rshift__(self, after: Any) -> Any:
        raise ConfigError(f"{self.name} already ends in a rule; put {after!r} before it")
