"""What every robust rule shares: its kinds, the gate against hostile rows, pipelines.

A rule is a frozen dataclass that stores its parameters and says what it ``needs`` of the updates. Checking f against
n, excluding hostile rows, converting kinds and combining rows happen here, once, for all rules.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bezoar.errors import ConfigError, HostileRowsError
from bezoar.updates.base import Needs, Updates
from bezoar.updates.convert import as_updates
from bezoar.updates.mixed import Mixed

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What the server knows beside the updates; rules use what they need of it."""

    round: int = 0
    model: Tensor | None = None
    client_weights: Tensor | None = None
    root_gradient: Tensor | None = None
    last_aggregate: Tensor | None = None


@dataclass(frozen=True)
class Aggregate:
    """A rule's answer with its diagnostics.

    Attributes:
        vector: the aggregate [d].
        state: what the rule remembers; hand it to the next call.
        weights: weight of every row in ``vector`` [n] float64, where the rule is a weighted sum of rows.
        scores: the rule's score of every row [n] float64 (NaN for excluded rows), where it has one.
        excluded: row index -> why it was left out before the rule ran.
        scales: factor by which pre-aggregation scaled every row [n], where it only scaled (clipping).
    """

    vector: Tensor
    state: State = field(default_factory=dict)
    weights: Tensor | None = None
    scores: Tensor | None = None
    excluded: Mapping[int, str] = field(default_factory=dict)
    scales: Tensor | None = None

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
            scales=widen(self.scales, 0.0),
            excluded=excluded,
        )


@dataclass(frozen=True)
class Part(ABC):
    """A building block of a defence: a mixing or a rule."""

    needs: ClassVar[Needs]

    @property
    def tolerated(self) -> int | None:
        """The declared number f of bad clients, None for parts without one."""
        value = getattr(self, "f", None)
        return value if isinstance(value, int) else None

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

    def without(self, excluded: int) -> Self:
        """This part for the rows that remain when ``excluded`` bad rows are gone: f becomes f - excluded."""
        f = self.tolerated
        return self if f is None or excluded == 0 else dataclasses.replace(self, **{"f": f - excluded})

    @property
    def name(self) -> str:
        """Class name, as in messages and reports."""
        return type(self).__name__


def check_count(owner: str, name: str, value: int) -> None:
    """Raise unless ``value`` is a whole number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{owner}: {name} must be a whole number >= 0, got {value!r}")


def gate(rows: Updates, tolerance: int | None, who: str, *, spare: bool = False) -> tuple[Tensor, dict[int, str]]:
    """Rows that hold finite numbers [m], and those that do not with the reason.

    ``tolerance`` is the smallest declared f (None: fewer than half may be bad; ``spare``: all but one).
    """
    finite = rows.finite().cpu()
    n = len(finite)
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
    return finite.nonzero().flatten(), {row: rows.flaws.get(row, "not finite") for row in bad}


@dataclass(frozen=True)
class Rule(Part):
    """Updates in, one vector out."""

    #: A rule that promises nothing against bad rows (the mean) reports any number of unusable ones.
    spare: ClassVar[bool] = False

    @abstractmethod
    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        """Aggregate rows that are all finite; ``check`` has passed."""

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
        n = len(rows)
        self.check(n)
        rows.require(self.needs, self.name)
        kept, excluded = gate(rows, self.tolerated, self.name, spare=self.spare)
        part, remaining = self, rows
        if excluded:
            part, remaining = self.without(len(excluded)), rows.select(kept)
            part.check(len(kept))
        answer = part._run(remaining, state or {}, context or Context(), generator)
        return answer._spread(kept, n, excluded) if excluded else answer

    def __call__(self, updates: Any, *, generator: torch.Generator | None = None) -> Any:
        """Aggregate: the answer [d] has the kind, dtype and device of the input."""
        rows, restore = as_updates(updates)
        return restore(self.aggregate(rows, generator=generator).vector)


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
        vector = torch.empty(rows.shape[1], dtype=rows.dtype, device=rows.device)
        for block in rows.blocks():
            vector[block.start : block.stop] = self.reduce(block.values).to(rows.dtype)
        return Aggregate(vector)


@dataclass(frozen=True)
class Mixing(Part):
    """Rows in, rows out: a pre-aggregator. Ends no pipeline, so it is not a defence by itself."""

    @abstractmethod
    def matrix(self, rows: Updates) -> Tensor:
        """The mixing matrix [m, n], or [n] if rows are only scaled (float64)."""

    def apply(self, rows: Updates) -> Mixed:
        """The mixed rows, lazily."""
        return Mixed(rows, self.matrix(rows))

    def __call__(self, updates: Any) -> Any:
        """The mixed rows [m, d], in the kind of the input."""
        rows, restore = as_updates(updates)
        self.check(len(rows))
        rows.require(self.needs, self.name)
        gate(rows, 0, self.name)
        mixed = self.apply(rows)
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
    def spare(self) -> bool:  # type: ignore[override]
        return self.rule.spare

    @property
    def tolerated(self) -> int | None:
        declared = [part.tolerated for part in (*self.mixings, self.rule) if part.tolerated is not None]
        return min(declared) if declared else None

    def check(self, n: int) -> None:
        for part in self.mixings:
            part.check(n)
        self.rule.check(n)

    def without(self, excluded: int) -> Self:
        return dataclasses.replace(
            self,
            mixings=tuple(part.without(excluded) for part in self.mixings),
            rule=self.rule.without(excluded),
        )

    @property
    def name(self) -> str:
        return " >> ".join(part.name for part in (*self.mixings, self.rule))

    def _run(self, rows: Updates, state: State, context: Context, generator: torch.Generator | None) -> Aggregate:
        scales: Tensor | None = None
        for i, part in enumerate(self.mixings):
            mixed = part.apply(rows)
            if mixed.scales_rows and (i == 0 or scales is not None):
                scales = mixed.matrix if scales is None else scales * mixed.matrix
            else:
                scales = None
            rows = mixed
        answer = self.rule._run(rows, state, context, generator)
        weights = answer.weights
        if weights is not None:
            for _ in self.mixings:
                assert isinstance(rows, Mixed)
                weights = weights * rows.matrix if rows.scales_rows else weights @ rows.matrix
                rows = rows.base
        return dataclasses.replace(answer, weights=weights, scales=scales)

    def __rshift__(self, after: Any) -> Any:
        raise ConfigError(f"{self.name} already ends in a rule; put {after!r} before it")
