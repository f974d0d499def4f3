"""Readings of the SparseFed paper: what it prints and what three revisions of its code do, as one key of an experiment.

A reading sets keys that an experiment leaves open, where they apply: those of a server's kind, of a rule's, of the
clients' regime. Whatever the experiment says itself wins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bezoar.aggregation import RULES
from bezoar.attacks import ATTACKS
from bezoar.clients import CLIENTS
from bezoar.data import SAMPLINGS
from bezoar.errors import ConfigError, nearest
from bezoar.experiments.defence import expanded
from bezoar.registry import Entry, Registry, added_defaults
from bezoar.servers import SERVERS
from bezoar.servers.schedules import SCHEDULES

Table = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A question that the paper leaves open, or answers in a way that can not be meant.

    Attributes:
        name: the question.
        printed: what the paper prints, and why that is a problem.
        coded: what the authors' code does.
        here: what bezoar does without a reading.
    """

    name: str
    printed: str
    coded: str
    here: str


@dataclass(frozen=True)
class Choice:
    """One key that a reading sets: ``key`` gets ``value`` in the sections of one of ``kinds`` (none: in any).

    ``clients`` restricts it to that regime. A function gets the experiment's table; None from it sets nothing.
    """

    row: int
    key: str
    value: Any
    kinds: tuple[str, ...] = ()
    clients: str = ""

    @property
    def section(self) -> str:
        """Where the key stands."""
        return self.key.rpartition(".")[0]

    @property
    def field(self) -> str:
        """The key within its section."""
        return self.key.rpartition(".")[2]

    def of(self, table: Table) -> Any:
        """The value for the experiment ``table``."""
        return self.value(table) if callable(self.value) else self.value

    def __str__(self) -> str:
        value = (self.value.__doc__ or "").rstrip(".") if callable(self.value) else _toml(self.value)
        where = [*self.kinds, *([f"clients {self.clients}"] if self.clients else [])]
        return f"{self.key} = {value}" + (f" ({', '.join(where)})" if where else "")


def clip_radius(table: Table) -> float | None:
    """the clipping radius of the pipeline."""
    parts = table.get("defence", {}).get("pipeline", [])
    radii = [part.get("radius") for part in parts if isinstance(part, dict) and part.get("kind") == "clip"]
    return min((float(radius) for radius in radii if isinstance(radius, int | float)), default=None)


_TARGETED = ("pgd", "adaptive-pgd", "single-step")
_PGD = ("pgd", "adaptive-pgd")

#: What every revision of the code does.
_CODE = (
    Choice(2, "defence.server.error_input", "momentum", ("sparsefed",)),
    Choice(3, "defence.server.masking", "zero", ("sparsefed",)),
    Choice(4, "defence.server.lr_placement", "inside-momentum", ("fetchsgd",), "gradient"),
    Choice(5, "clients.lr_decay", 0.9, clients="local"),
    Choice(9, "attack.project", "batch", _PGD),
    Choice(9, "attack.boost_on", "loss", _TARGETED),
    Choice(11, "attack.collude", True, _TARGETED),
    Choice(12, "attack.support", "unused", ("adaptive-pgd",)),
    Choice(14, "defence.rule.variant", "lower", ("median",)),
    Choice(15, "defence.rule.variant", "code-2021-05", ("krum", "multi-krum")),
    Choice(17, "defence.server.error_masking", "zero", ("fetchsgd",)),
    Choice(17, "defence.server.masking", "zero", ("fetchsgd",)),
    Choice(18, "defence.server.rows", 1, ("fetchsgd",)),
    Choice(18, "defence.server.columns", "10%", ("fetchsgd",)),
    Choice(22, "clients.weight_decay", 5e-4),
    Choice(22, "clients.split_decay", True),
    Choice(23, "sampling.skip_tail", True, ("epoch",)),
    Choice(24, "attack.aux_from", "first", _TARGETED),
    Choice(24, "attack.replacement", True, _TARGETED),
    Choice(24, "attack.augment", True, _TARGETED),
    Choice(25, "adversary.which", "last"),
)

#: What the revisions of 2021-06 and 2021-08 share.
_LATER = (
    Choice(4, "defence.server.lr_placement", "outside", ("sparsefed", "sgd")),
    Choice(9, "attack.rescale", True, _PGD),
    Choice(10, "attack.single", False, _PGD),
    Choice(26, "learning_rate.offset", 0.0, clients="gradient"),
    Choice(26, "learning_rate.offset", 1.0, clients="local"),
)


@dataclass(frozen=True)
class Reading:
    """A set of choices under a name."""

    summary: str
    choices: tuple[Choice, ...]


READINGS: dict[str, Reading] = {
    "paper": Reading(
        "As the paper prints it: Algorithms 1, 6, 8, 9 and 10, signs repaired.",
        (
            Choice(2, "defence.server.error_input", "update", ("sparsefed",)),
            Choice(3, "defence.server.masking", "subtract", ("sparsefed",)),
            Choice(4, "defence.server.lr_placement", "outside", ("sparsefed", "sgd")),
            Choice(6, "defence.adaptive_clip", True, clients="local"),
            Choice(9, "attack.project", "epoch", _PGD),
            Choice(9, "attack.rescale", False, _PGD),
            Choice(9, "attack.boost_on", "update", _TARGETED),
            Choice(10, "attack.single", False, _PGD),
            Choice(11, "attack.collude", True, _TARGETED),
            Choice(12, "attack.support", "honest", ("adaptive-pgd",)),
            Choice(14, "defence.rule.variant", "midpoint", ("median",)),
            Choice(15, "defence.rule.variant", "sparsefed", ("krum", "multi-krum")),
            Choice(16, "defence.rule.variant", "sparsefed", ("bulyan",)),
            Choice(4, "defence.server.lr_placement", "inside", ("fetchsgd",)),
            Choice(17, "defence.server.error_masking", "subtract", ("fetchsgd",)),
            Choice(17, "defence.server.masking", "none", ("fetchsgd",)),
        ),
    ),
    "code-2021-05": Reading(
        "The authors' code of 2021-05-27: rate inside momentum and a round late, one attack step, broken rules.",
        (
            *_CODE,
            Choice(4, "defence.server.lr_placement", "inside-momentum", ("sparsefed", "sgd"), "gradient"),
            Choice(6, "defence.adaptive_clip", False),
            Choice(6, "clients.step_radius", clip_radius, clients="local"),
            Choice(9, "attack.rescale", False, (*_PGD, "single-step")),
            Choice(10, "attack.single", True, _PGD, "gradient"),
            Choice(13, "defence.rule.variant", "code-2021-05", ("trimmed-mean",)),
            Choice(16, "defence.rule.variant", "code-2021-05", ("bulyan",)),
            Choice(26, "learning_rate.offset", 1.0),
        ),
    ),
    "code-2021-06": Reading(
        "The authors' code of 2021-06-04: rate on the step, whole updates clipped to a fixed radius, broken rules.",
        (
            *_CODE,
            *_LATER,
            Choice(6, "defence.adaptive_clip", False),
            Choice(6, "attack.rescale_above", 1e-3, _PGD),
            Choice(13, "defence.rule.variant", "code-2021-05", ("trimmed-mean",)),
            Choice(16, "defence.rule.variant", "code-2021-06", ("bulyan",)),
        ),
    ),
    "code-2021-08": Reading(
        "The authors' code of 2021-08-28: rate on the step, radius times the rate under FedAvg, rules repaired.",
        (
            *_CODE,
            *_LATER,
            Choice(6, "defence.adaptive_clip", True, clients="local"),
            Choice(13, "defence.rule.variant", "yin", ("trimmed-mean",)),
            Choice(16, "defence.rule.variant", "sparsefed", ("bulyan",)),
        ),
    ),
}

_DEFAULTS_ONLY = "the same in all readings"

ROWS: dict[int, Row] = {
    1: Row(
        "sign of updates",
        "u = theta_t - theta and then theta - lambda Delta: negated twice, it ascends the loss",
        "global minus local",
        "global minus local, " + _DEFAULTS_ONLY,
    ),
    2: Row(
        "what enters error feedback",
        "Algorithm 1 computes momentum R and never uses it (W += u); Algorithm 5 has W += R",
        "W += R",
        "R",
    ),
    3: Row(
        "momentum where the model moved",
        "Algorithm 1 subtracts the step, which is made of W, from R; Algorithm 5 does nothing; the text zeroes",
        "zeroed",
        "zeroed",
    ),
    4: Row(
        "where the server's rate enters",
        "on the step in Algorithms 1 and 5, inside error feedback in 2 and 10: not the same as soon as the rate varies",
        "2021-05: clients multiply, so inside momentum; later: on the step (with a sketch still inside momentum here; "
        "in 2021-08 nobody multiplies a sketch any more: the rate is 1)",
        "on the step; under FedAvg the rate is the clients'",
    ),
    5: Row(
        "two rates under FedAvg",
        "a local gamma(t, m) and a server's lambda(t): with one schedule for both, updates shrink with its square",
        "one rate; each local step multiplies the next one's by 0.9",
        "one rate; `clients.server_schedule` for both, `clients.server_lr_factor`, `clients.lr_decay`",
    ),
    6: Row(
        "clipping",
        "once, on the whole update; B.2 lets the radius follow the rate",
        "2021-05: under FedAvg every local step, so that honest updates shrink with the rate and attackers' do not; "
        "2021-06: the whole update, attackers stretched to the radius unless the rate is below 0.001; 2021-08: the "
        "radius times the rate",
        "the server clips every update; fixed radius unless `defence.adaptive_clip`",
    ),
    7: Row(
        "weights of clients",
        "the mean over n, though sizes differ",
        "uniform (the FetchSGD code that it comes from: by samples)",
        "uniform, " + _DEFAULTS_ONLY + "; `weighted = true` of `mean` and `trimmed-mean`",
    ),
    8: Row(
        "Algorithm 4",
        "is titled SparseFed and is FedAvg with server momentum",
        "FedAvg with server momentum",
        "clients `local`, server `sgd`, " + _DEFAULTS_ONLY,
    ),
    9: Row(
        "the PGD attack",
        "M <- M_0 - CLIP(M - M_0) jumps away from M_0; once an epoch; whether update or loss is boosted is open",
        "the projection, after every batch; the loss is boosted; from 2021-06 on updates are stretched to the radius",
        "the projection after every batch, then stretched to the radius; boost on the update",
    ),
    10: Row(
        "PGD against SparseFed",
        "the same attack against every defence",
        "2021-05 has PGD under FedAvg only: SparseFed's attackers take one gradient step of the boosted loss",
        "PGD against every defence",
    ),
    11: Row(
        "collusion",
        "all attackers of a round send the same vector",
        "cached per worker process: true with one process",
        "the same vector; `attack.collude = false` for one each",
    ),
    12: Row(
        "the adaptive attack",
        "Algorithm 12 has the sign error of Algorithm 6, and a minus sign is lost",
        "the projection onto the top-k is computed and not used, or not there: plain PGD",
        "projects after every step",
    ),
    13: Row(
        "trimmed mean",
        "f smallest and f largest values of every coordinate",
        "2021-05 and 2021-06: drop clients by place, one number for all coordinates, NaN for f = 0; then repaired",
        "as printed; f = 0 is the mean",
    ),
    14: Row("median of an even number", "not said", "the lower of the middle two", "their midpoint"),
    15: Row(
        "Krum",
        "Algorithm 8 leaves out f+2 rows, of which the row itself is none: n-f-3 others, distances unsquared",
        "the 3 farthest left out, whatever f is, unsquared",
        "Blanchard et al.: n-f-2 others, squared",
    ),
    16: Row(
        "Bulyan",
        "trims what Krum has picked; El Mhamdi et al. average around the median; n >= 4f+2 in the text, 4f+3 there",
        "2021-05 and 2021-06: with the trimmed mean of row 13; 2021-08: as printed",
        "El Mhamdi et al.",
    ),
    17: Row(
        "FetchSGD's error feedback",
        "subtracts the sketch of the step; momentum is left alone",
        "zeroes every touched cell of error and momentum: subtracting diverged",
        "zeroes both",
    ),
    18: Row(
        "size of the sketch",
        "ten times less communication",
        "one row: no median is taken",
        "five rows, each with a tenth of the model's size",
    ),
    19: Row(
        "choice of k",
        "an absolute error is compared with a relative tolerance",
        "nowhere",
        "relative; no part of an experiment",
    ),
    20: Row(
        "certified radius",
        "its induction uses Bernoulli's inequality the wrong way round",
        "nowhere",
        "the recurrence; no part of an experiment",
    ),
    21: Row(
        "test accuracy",
        "without the aux points in one table, not said in the others",
        "with the aux points",
        "both are reported",
    ),
    22: Row(
        "weight decay",
        "not said",
        "0.0005, divided by the clients of a round and added to each one's gradient before it is clipped: effectively "
        "0.000005 with 100 clients",
        "none; `clients.weight_decay`",
    ),
    23: Row(
        "cohorts",
        "n clients are sampled",
        "every epoch without replacement until all samples are used, attackers counted with their aux points "
        "(`sampling.batch_size`, `sampling.epoch_rounds`); too small cohorts are skipped, the schedule goes on",
        "as `sampling` says; small cohorts are played",
    ),
    24: Row(
        "aux points",
        "a sample of the test set",
        "its first images in order; drawn with replacement and augmented when attackers train",
        "drawn from the seed, every point once a pass, as they are",
    ),
    25: Row(
        "who is malicious",
        "a share of the clients",
        "the last ids: with one class a client, up to a fifth of the last class is gone",
        "drawn from the seed",
    ),
    26: Row(
        "when the rate changes",
        "triangular, 0 to 0.2 to 0",
        "piecewise linear over [0, 5, 24] epochs at the end of every round, so that the last one has rate 0; "
        "a round late where clients multiply: in 2021-05, and under FedAvg in all revisions",
        "at the middle of every round: none has rate 0",
    ),
}


def read(table: Mapping[str, Any], name: str) -> Table:
    """``table`` of an experiment with the keys that the reading ``name`` sets, where it leaves them open.

    Raises:
        ConfigError: a section is a finished part, which does not say what was left open.
    """
    full, given = _as_tables(table), _server_keys(table.get("defence"))
    for choice in READINGS[name].choices:
        for part in _sections(full, choice):
            said = choice.field in (given if choice.section == "defence.server" else part)
            value = None if said else choice.of(full)
            if value is not None:
                part[choice.field] = value
    return full


def _server_keys(defence: Any) -> set[str]:
    """The server's keys that an experiment sets itself: what a preset fills in is open."""
    if not isinstance(defence, Mapping):
        return set()
    server = defence.get("server")
    keys = set(server) if isinstance(server, Mapping) else set()
    return keys | set(defence) if "preset" in defence else keys


def spelt_out(table: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> Table:
    """A resolved ``table`` with the keys of the reading that it leaves out because they are at their defaults.

    Without them the reading would set them when the table is read again. ``defaults`` has those of keys that belong to
    no registered part.
    """
    full = _as_tables(table)
    for choice in READINGS[name].choices:
        for part in _sections(full, choice):
            if choice.field not in part:
                known = added_defaults(_REGISTRIES[choice.section][part["kind"]]) if "kind" in part else defaults
                part[choice.field] = known[choice.field if "kind" in part else choice.key]
    return full


_REGISTRIES: Mapping[str, Registry[Any]] = {
    "clients": CLIENTS,
    "attack": ATTACKS,
    "sampling": SAMPLINGS,
    "learning_rate": SCHEDULES,
    "defence.server": SERVERS,
    "defence.rule": RULES,
}


def _as_tables(table: Mapping[str, Any]) -> Table:
    """A copy in which names of kinds and presets are tables, so that single keys of them can be set."""
    full = {**table}
    full.setdefault("clients", "gradient")
    full.setdefault("adversary", {})
    for section in ("clients", "attack", "sampling", "learning_rate", "adversary"):
        if section in full:
            full[section] = _kind(full[section], section)
    defence = full.get("defence")
    _refuse(defence, "defence")
    if isinstance(defence, str | Mapping):
        try:
            triple = expanded(defence)
        except ConfigError:
            return full  # told when the section itself is read
        triple["server"] = _kind(triple.get("server", "sgd"), "defence.server")
        parts = triple.get("pipeline", [])
        parts = list(parts) if isinstance(parts, list | tuple) else [parts]
        triple["pipeline"] = [_kind(part, "defence.pipeline") for part in parts]
        full["defence"] = triple
    return full


def _kind(value: Any, where: str) -> Any:
    _refuse(value, where)
    return {"kind": value} if isinstance(value, str) else {**value} if isinstance(value, Mapping) else value


def _refuse(value: Any, where: str) -> None:
    if dataclasses.is_dataclass(value) or hasattr(value, "model_dump"):
        raise ConfigError(
            f"{where}: a finished {type(value).__name__} leaves nothing open for a reading; give a name or a table"
        )


def _sections(table: Table, choice: Choice) -> Iterator[Table]:
    """The tables in which ``choice`` applies."""
    clients = table["clients"]
    if choice.clients and not (isinstance(clients, dict) and clients.get("kind") == choice.clients):
        return
    if choice.section == "defence.rule":
        defence = table.get("defence")
        found = defence.get("pipeline", []) if isinstance(defence, dict) else []
    else:
        found = [table]
        for step in choice.section.split("."):
            found = [part.get(step) for part in found if isinstance(part, dict)]
    for part in found:
        if not isinstance(part, dict) or (choice.kinds and part.get("kind") not in choice.kinds):
            continue
        # Which ids are the last depends on how many there are.
        if choice.section != "adversary" or part.get("count") is not None or part.get("share") is not None:
            yield part


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else f"{value:g}"


def entries() -> list[Entry]:
    """The readings for ``bezoar list readings``; a card has a line for every row of which something is set."""
    found = []
    for name, reading in READINGS.items():
        card: dict[str, str] = {}
        for choice in sorted(reading.choices, key=lambda choice: choice.row):
            label = f"{choice.row} {ROWS[choice.row].name}"
            card[label] = f"{card[label]}; {choice}" if label in card else str(choice)
        open_ = [f"{number} {row.name}" for number, row in ROWS.items() if f"{number} {row.name}" not in card]
        found.append(Entry(name, "", reading.summary, {**card, "Left as it is": "; ".join(open_)}))
    return found


def check(name: str) -> str:
    """``name`` if there is such a reading; raises ConfigError with the nearest one otherwise."""
    if name not in READINGS:
        raise ConfigError(f"unknown reading {name!r}; {nearest(name, READINGS)}")
    return name
