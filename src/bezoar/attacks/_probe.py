"""What a defence would answer to rows that attackers might send, without asking it on the n x d data each time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from bezoar.aggregation.base import COLUMN_BYTES, Aggregate, Context, Rule
from bezoar.attacks.base import AttackContext, usable
from bezoar.errors import DivergedError, HostileRowsError
from bezoar.kernels.gram import SPREAD, products_about, typical, widened
from bezoar.seeding import generator
from bezoar.updates.base import BLOCK_BYTES, Block, Needs, Updates, column_ranges
from bezoar.updates.dense import DenseUpdates
from bezoar.updates.held import weighted_sum
from bezoar.updates.stacked import Stacked

#: Columns that stand for all where a rule reads columns.
SAMPLE = 4096

#: Whole aggregations that an attack may ask for in a round where nothing cheaper will do.
FEW = 16

Method = Literal["exact", "sampled", "whole"]

State = dict[str, Tensor]


class Sampled(Updates):
    """Rows known by some of their columns; their lengths, products and distances are those of all columns.

    ``places`` [n, r] are coordinates of the whole rows in a space of their own, ``values`` [n, s] the known columns.
    """

    offers = ~(Needs.LAYOUT | Needs.DOT)

    def __init__(self, places: Updates, values: Tensor) -> None:
        self.places, self.values = places, values

    @property
    def shape(self) -> tuple[int, int]:
        n, s = self.values.shape
        return n, s

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def clients(self) -> Tensor:
        return self.places.clients

    def _squared_norms(self) -> Tensor:
        return self.places.squared_norms()

    def _gram(self) -> Tensor:
        return self.places.gram()

    def _squared_distances(self) -> Tensor:
        return self.places.squared_distances()

    def dot(self, vector: Tensor) -> Tensor:
        raise NotImplementedError("rules that compare with vectors are not asked on a sample of columns")

    def combine(self, weights: Tensor) -> Tensor:
        wide = widened(self.values)
        return weighted_sum(weights.to(wide.device, wide.dtype), wide).to(self.dtype)

    def columns(self, index: Tensor) -> Tensor:
        return self.values[:, index]

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        n, s = self.shape
        for start, stop in column_ranges(n, s, self.dtype.itemsize, max_bytes):
            yield Block(start, stop, self.values[:, start:stop])

    def select(self, rows: Tensor) -> Sampled:
        return Sampled(self.places.select(rows), self.values[rows])


def column_spread(honest: Updates) -> Tensor:
    """Standard deviation [d] of every column of ``honest``, divided by n - 1; zero for a single row."""
    spread = torch.empty(honest.shape[1], dtype=honest.dtype, device=honest.device)
    for block in honest.share(COLUMN_BYTES):
        values = block.values.double()
        variance = (values - values.mean(0)).square_().sum(0) / max(1, len(honest) - 1)
        spread[block.start : block.stop] = variance.sqrt_().to(honest.dtype)
    return honest.spread.join(spread)


class Probe:
    r"""How far malicious rows would drag a defence's answer away from the honest mean.

    The rows are mixtures of honest rows and of ``vectors`` [k, d]. A trial is ``deviation(mix)``, where ``mix``
    [n_h + k] holds a row's weights on the honest rows of ``view``, in its order, and on the vectors; [q, n_h + k] has
    a row for every attacker. ``mean`` is the mix that is the honest mean. By what the rule needs (``method``):

    - ``"exact"``: a rule that needs no columns sees inner products only. It is asked on n rows of r <= n_h + k + 1
      coordinates that have the same ones (an isometry), also of the vectors that it is compared with.
    - ``"sampled"``: rules that read columns see a few of them, and the norms and distances of whole rows. The answer's
      weights, if it has any, make the deviation exact; otherwise it is an estimate from the sample.
    - ``"whole"``: rules that read named layers, remember clients or compare with vectors column by column are asked on
      the rows themselves. No more than about :data:`FEW` trials are then affordable.

    The rule gets a copy of its memory; what it draws comes from the attackers' own stream, the same in every trial, as
    nobody knows the server's coins. Of noise that a rule adds to every coordinate, cheap trials count the expected
    square: there are d of them, not r. Rows that make it give up the round, or are no numbers in the updates' type,
    have deviation 0: the attack is detected.

    ``importance`` [d] (>= 0) says which columns matter; half the sample is drawn in proportion to it, half uniformly.
    """

    def __init__(
        self,
        view: Updates,
        vectors: Tensor,
        defence: Rule,
        context: AttackContext,
        *,
        importance: Tensor | None = None,
        sample: int = SAMPLE,
    ) -> None:
        self.view, self.vectors, self.defence, self.context = view, vectors, defence, context
        self.honest = usable(view)
        self._kept = view.finite().nonzero().flatten()
        self.empty = len(self._kept) == 0
        self.span = len(view) + len(vectors)
        self.mean = torch.zeros(self.span, dtype=torch.float64, device=view.device)
        self.mean[self._kept] = 1 / max(1, len(self._kept))
        self.aggregations = 0
        self._ids = torch.cat([view.clients.cpu(), context.clients.cpu()])
        self._order = torch.argsort(self._ids, stable=True).to(view.device)
        self.method: Method = self._choose()
        if self.empty:
            return
        references, known, state = self._references()
        self._known, self._state = known, state
        places, origin = self._coordinates(torch.cat([vectors, *(v[None] for v in references.values())]))
        self._places, self._origin = places[: self.span], origin
        for (where, name), place in zip(references, places[self.span :], strict=True):
            if where == "state":
                self._state[name] = place
            else:
                self._known = dataclasses.replace(self._known, **{name: place})
        self._centre = self.mix(self.mean)
        if self.method == "sampled":
            self._sample(importance, sample)

    def _choose(self) -> Method:
        needs, memory = self.defence.needs, self.context.rule_state
        if not needs & (Needs.COLUMNS | Needs.BLOCKS | Needs.LAYOUT):
            return "exact"
        readable = Needs.COLUMNS in self.view.offers
        if not readable or needs & (Needs.LAYOUT | Needs.DOT) or self.defence.by_client or memory:
            return "whole"
        return "sampled"

    @property
    def cheap(self) -> bool:
        """Whether a trial does without the n x d data."""
        return self.method != "whole"

    def unit(self, j: int) -> Tensor:
        """The mix [n_h + k] that is the vector j."""
        mix = torch.zeros_like(self.mean)
        mix[len(self.view) + j] = 1.0
        return mix

    def mix(self, mix: Tensor) -> Tensor:
        """Coordinates [r] or [q, r] of rows; those that are mixed with huge weights stay finite in float64."""
        places: Tensor = mix @ self._places
        return places

    def distances(self, mix: Tensor) -> Tensor:
        """Distances [usable honest rows] of the row ``mix`` [n_h + k] from the honest rows that are finite."""
        apart: Tensor = torch.linalg.vector_norm(self._places[self._kept] - self.mix(mix), dim=1)
        return apart

    def norm(self, mix: Tensor) -> float:
        """Length of the row ``mix`` [n_h + k], measured from zero."""
        return float(torch.linalg.vector_norm(self.mix(mix)))

    def deviation(self, mix: Tensor) -> float:
        """The distance of the answer from the honest mean when the attackers send ``mix``; see the class."""
        if self.empty:
            return 0.0
        mix = mix.to(self.mean)
        mix = mix[None] if mix.ndim == 1 else mix
        # A number beyond the updates' type makes a row that every rule leaves out.
        limit = torch.finfo(self.view.dtype).max / 4
        if not bool((torch.linalg.vector_norm(self.mix(mix), dim=1) < limit).all()):
            return 0.0
        if self.method == "whole":
            return self.whole_deviation(self.stack(mix))
        try:
            return self._cheap_deviation(mix)
        except (HostileRowsError, DivergedError):
            return 0.0

    def whole_deviation(self, rows: Stacked) -> float:
        """The same by a whole aggregation of ``rows``."""
        answer = self.answer(rows)
        if answer is None:
            return 0.0
        mean = self.honest.combine(torch.full((len(self.honest),), 1 / len(self.honest), dtype=torch.float64))
        size = float(torch.linalg.vector_norm(answer.vector.double() - mean.double()))
        return size if math.isfinite(size) else 0.0

    def answer(self, rows: Stacked) -> Aggregate | None:
        """The defence's answer to whole rows, None if it gives up the round."""
        self.aggregations += 1
        memory = {name: value.clone() for name, value in self.context.rule_state.items()}
        try:
            return self.defence.aggregate(rows, memory, self.context.server_context, self._draws())
        except (HostileRowsError, DivergedError):
            return None

    def stack(self, mix: Tensor) -> Stacked:
        """The rows ``mix`` ([n_h + k], or one a attacker) stacked on the honest ones, in the order of client ids."""
        q = len(self.context.clients)
        kinds, which = torch.unique(mix.expand(q, self.span), dim=0, return_inverse=True)
        split = len(self.view)
        honest = kinds[:, :split] if self.empty else kinds[:, self._kept]
        vectors = self.honest.combine(honest)
        if len(self.vectors):
            added = kinds[:, split:].to(self.vectors) @ self.vectors
            vectors = vectors + added.to(vectors.dtype)
        shape = torch.nn.functional.one_hot(which.cpu(), len(kinds)).double()
        return Stacked.by_client(self.view, shape, vectors, self.context.clients)

    def settle(self, candidates: Sequence[tuple[Tensor, float]]) -> tuple[Stacked, float, Tensor]:
        """Of (mix, deviation) the one of largest deviation: its rows, its deviation and the mix itself.

        Estimates from a sample are replaced by whole aggregations first.
        """
        if self.method == "sampled" and not self.empty:
            stacks = [self.stack(mix) for mix, _ in candidates]
            measured = [self.whole_deviation(rows) for rows in stacks]
            best = max(range(len(candidates)), key=lambda i: measured[i])
            return stacks[best], measured[best], candidates[best][0]
        mix, value = max(candidates, key=lambda candidate: candidate[1])
        return self.stack(mix), value, mix

    def _draws(self) -> torch.Generator:
        return generator(self.context.seed, "probe", self.context.round)

    def _references(self) -> tuple[dict[tuple[str, str], Tensor], Context, State]:
        """The vectors that the rule may compare rows with, and what else it knows and remembers.

        Only rules that ask for dot products compare with vectors; the others need not pay for their products.
        """
        context, d = self.context.server_context, self.view.shape[1]
        bare = dataclasses.replace(context, model=None, last_aggregate=None, root_gradient=None)
        memory = {name: value.clone() for name, value in self.context.rule_state.items()}
        if self.method != "exact" or Needs.DOT not in self.defence.needs:
            return {}, bare, memory
        known = {name: getattr(context, name) for name in ("model", "last_aggregate", "root_gradient")}
        found = {("context", name): vector for name, vector in known.items() if vector is not None}
        found |= {("state", name): v for name, v in memory.items() if v.shape == (d,) and v.is_floating_point()}
        return (
            {key: vector.detach().to(self.view.device, self.view.dtype) for key, vector in found.items()},
            bare,
            memory,
        )

    def _coordinates(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of all rows of the view (zero where not finite) and of ``vectors``, with their inner products.

        Rows are measured from a row of median norm, so that rows that lie far from zero but close together keep the
        digits of their distances. Dividing by lengths before the eigenvalues are found keeps those of short rows
        beside long ones.
        """
        honest = self.honest
        distances, norms = honest.squared_distances(), honest.squared_norms()
        c, h, k = typical(norms), len(honest), len(vectors)
        products = torch.zeros(h + 1 + k, h + 1 + k, dtype=torch.float64, device=honest.device)
        # Beside a huge row, differences of squared norms would leave nothing of the others' products.
        centred = bool(norms.max() <= SPREAD**2 * norms[c])
        if centred:
            products[:h, :h] = products_about(distances, c)
            products[:h, h] = products[h, :h] = (norms - distances[c] - norms[c]) * 0.5
            products[h, h] = norms[c]
        else:
            products[:h, :h] = honest.gram()
        for j, vector in enumerate(vectors, start=h + 1):
            along = honest.dot(vector)
            products[h, j] = products[j, h] = along[c] if centred else 0.0
            products[:h, j] = products[j, :h] = along - products[h, j]
        wide = vectors.double()
        products[h + 1 :, h + 1 :] = wide @ wide.T
        size = products.diagonal().clamp(min=0).sqrt()
        inverse = torch.where(size > 0, 1 / size, torch.zeros_like(size))
        spread, directions = torch.linalg.eigh(products * inverse[:, None] * inverse)
        places = size[:, None] * directions * spread.clamp(min=0).sqrt()
        # Equal rows get equal coordinates, bit by bit: ties go by that.
        rows = (places[:h] + places[h])[(distances == 0).to(torch.int8).argmax(1)]
        view = torch.zeros(len(self.view), places.shape[1], dtype=torch.float64, device=honest.device)
        view[self._kept] = rows
        return torch.cat([view, places[h + 1 :]]), places[h]

    def _sample(self, importance: Tensor | None, sample: int) -> None:
        """Draw columns, with the factor by which each of them stands for the others."""
        d, device = self.view.shape[1], self.view.device
        if sample >= d:
            index, self._factors = torch.arange(d), torch.ones(d, dtype=torch.float64, device=device)
        else:
            chance = torch.full((d,), 1 / d, dtype=torch.float64)
            if importance is not None:
                weight = importance.detach().cpu().double()
                # Divided first: squares of huge numbers add up beyond float64.
                weight = weight / weight.max().clamp(min=1e-300)
                total = float(weight.sum())
                if 0 < total < math.inf:
                    chance = (chance + weight / total) / 2
            steps = chance.cumsum(0)
            draws = generator(self.context.seed, "probe columns", self.context.round)
            points = torch.rand(sample, generator=draws, dtype=torch.float64) * steps[-1]
            drawn = torch.searchsorted(steps, points).clamp(max=d - 1)
            index, times = torch.unique(drawn, return_counts=True)
            self._factors = (times / (sample * chance[index])).to(device)
        index = index.to(device)
        columns = self.view.columns(index)
        self._columns = torch.cat([columns, self.vectors[:, index].to(columns.dtype)])
        finite = self._columns[self._kept].double()
        self._mean_columns = finite.mean(0)

    def _cheap_deviation(self, mix: Tensor) -> float:
        sent = self.mix(mix)
        # One row for all is mixed once: copies have to be equal bit by bit.
        sent = sent.expand(len(self.context.clients), -1)
        split = len(self.view)
        rows = torch.full((split, sent.shape[1]), torch.nan, dtype=torch.float64, device=sent.device)
        rows[self._kept] = self._places[self._kept]
        places = DenseUpdates(torch.cat([rows, sent])[self._order], self._ids[self._order.cpu()])
        memory = {name: value.clone() for name, value in self._state.items()}
        if self.method == "exact":
            answer = self.defence.aggregate(places, memory, self._known, self._draws())
            gap = self._weighed(answer, places) if answer.noise else answer.vector - self._centre
            return self._expected(float(torch.linalg.vector_norm(gap)), answer)
        own = self._columns[torch.cat([self._kept, torch.arange(split, self.span, device=sent.device)])]
        used = torch.cat([mix[:, self._kept], mix[:, split:]], dim=1)
        wide = widened(own)
        mixed = (used.to(wide.dtype) @ wide).to(own.dtype).expand(len(sent), -1)
        columns = torch.cat([self._columns[:split], mixed])[self._order]
        answer = self.defence.aggregate(Sampled(places, columns), memory, self._known, self._draws())
        if answer.weights is not None:
            size = float(torch.linalg.vector_norm(self._weighed(answer, places)))
        else:
            gap = answer.vector.double() - self._mean_columns
            size = float((gap.square() * self._factors).sum().sqrt())
        return self._expected(size, answer)

    def _weighed(self, answer: Aggregate, places: DenseUpdates) -> Tensor:
        """What the answer's weights make of all rows, less the honest mean, in coordinates [r]."""
        assert answer.weights is not None, "an answer with noise says what it was before"
        weighty = answer.weights != 0
        gap: Tensor = answer.weights[weighty] @ places.values[weighty] - self._centre
        return gap

    def _expected(self, size: float, answer: Aggregate) -> float:
        """``size`` with the expected square of the noise that the rule adds to each of the d coordinates."""
        size = math.hypot(size, answer.noise * math.sqrt(self.view.shape[1]))
        return size if math.isfinite(size) else 0.0
