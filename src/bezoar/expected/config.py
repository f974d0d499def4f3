"""An experiment on expected robustness: who may be bad, what is learnt, and all rules against all attacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomlkit
from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from bezoar.aggregation import Rule, pipeline, pipeline_tables
from bezoar.attacks import ATTACKS, Attack, DataAttack, UpdateAttack
from bezoar.data import DATASETS
from bezoar.errors import ConfigError, nearest
from bezoar.experiments.config import FolderName, Model, PartitionField, Settings, explain, read_toml
from bezoar.priors import PRIORS, HonestPrior

KIND = "expected"

#: Data that are made, not loaded.
SYNTHETIC = "synthetic"

PriorField = Annotated[HonestPrior, PlainValidator(PRIORS.build), PlainSerializer(PRIORS.table)]


class Task(Settings):
    """What is learnt, from which data, and by how many clients.

    ``kind`` is ``"ridge"`` (squared error), ``"softmax"`` (cross-entropy; both linear in the features, with a bias, and
    strongly convex by ``l2``: all constants and minima are known), or ``"model"`` (any ``model``; only losses and
    accuracies are known, and clients send the gradient of ``batch_size`` of their samples, 0: of all).

    ``dataset`` is a registered name, divided by ``partition``, or ``"synthetic"``: ``clients`` with ``samples`` each of
    ``features`` numbers. Ridge regression then gets a linear target with noise of standard deviation ``noise``, softmax
    regression ``classes`` Gaussian classes whose means lie ``separation`` apart. ``heterogeneity`` is how far the
    target (or the class means) of different groups lie apart, ``alpha`` skews the classes of a group (Dirichlet; left
    out: none). Groups are consecutive clients, ``groups`` their sizes (empty: every client is its own).

    Of a registered data set a client takes at most ``samples`` (0: all). With ``groups``, the ``partition`` divides the
    data among the groups; a group's samples are dealt evenly to its members. Ridge regression on classes
    predicts their indicators (least-squares classification).
    """

    kind: Literal["ridge", "softmax", "model"]
    dataset: str = SYNTHETIC
    partition: PartitionField | None = None
    clients: int | None = Field(None, ge=1)
    groups: tuple[int, ...] = ()
    samples: int = Field(100, ge=0)
    features: int = Field(30, ge=1)
    classes: int = Field(10, ge=2)
    heterogeneity: float = Field(0.0, ge=0)
    alpha: float | None = Field(None, gt=0)
    noise: float = Field(0.5, ge=0)
    separation: float = Field(3.0, ge=0)
    l2: float = Field(0.01, ge=0)
    model: Model | None = None
    batch_size: int = Field(0, ge=0)

    @field_validator("groups", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(size < 1 for size in self.groups):
            raise ConfigError(f"groups must be sizes >= 1, got {list(self.groups)}")
        made = self.dataset == SYNTHETIC
        if not made and self.dataset not in DATASETS:
            raise ConfigError(f"unknown data set {self.dataset!r}; {nearest(self.dataset, [SYNTHETIC, *DATASETS])}")
        if made and self.kind == "model":
            raise ConfigError("kind = 'model' learns from a registered data set: give dataset and partition")
        if made and self.partition is not None:
            raise ConfigError("partition divides a registered data set; synthetic clients have data of their own")
        if made and not self.groups and self.clients is None:
            raise ConfigError("synthetic data need clients or groups")
        if made and self.samples < 1:
            raise ConfigError("synthetic clients need samples >= 1")
        if made and self.groups and self.clients not in (None, sum(self.groups)):
            raise ConfigError(f"groups have {sum(self.groups)} clients, but clients={self.clients}")
        if not made and self.partition is None:
            raise ConfigError(f"{self.dataset} must be divided over clients: give partition")
        allowed = self._allowed(made)
        for key in sorted(self.model_fields_set - allowed):
            if getattr(self, key) != type(self).model_fields[key].default:
                kind = f"kind={self.kind!r} with {'synthetic data' if made else self.dataset}"
                raise ConfigError(f"{key} means nothing for {kind}; its keys are {', '.join(sorted(allowed))}")
        if self.kind == "model" and self.model is None:
            raise ConfigError('kind = "model" needs a model, e.g. {name = "cnn"}')
        if self.kind != "model" and not self.l2 > 0:
            raise ConfigError("l2 must be positive: it is what makes the loss strongly convex")
        return self

    def _allowed(self, made: bool) -> set[str]:
        keys = {"kind", "dataset", "groups", "samples"}
        keys |= {"clients", "features", "heterogeneity"} if made else {"partition"}
        keys |= {"model", "batch_size"} if self.kind == "model" else {"l2"}
        if made:
            keys |= {"noise"} if self.kind == "ridge" else {"classes", "separation", "alpha"}
        return keys

    @model_serializer(mode="wrap")
    def _only_what_matters(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        table: dict[str, Any] = handler(self)
        allowed = self._allowed(self.dataset == SYNTHETIC)
        return {key: value for key, value in table.items() if key in allowed and value is not None}


class Sets(Settings):
    """Which honest sets the training is run for: every one of the support if these are at most ``most``, each with its
    probability; else ``draws`` of them, drawn from the seed, all of equal weight."""

    most: int = Field(64, ge=1)
    draws: int = Field(32, ge=1)


def _rule(table: Any) -> Rule:
    return table if isinstance(table, Rule) else pipeline(table)


class Labelled(Settings):
    """A rule by the label under which it is recorded."""

    label: str = Field(min_length=1)
    pipeline: Annotated[Rule, PlainValidator(_rule), PlainSerializer(pipeline_tables)]


class LabelledAttack(Settings):
    """An attack by its label; ``attack`` is None where nobody attacks (bad clients then do as honest ones)."""

    label: str = Field(min_length=1)
    attack: Any = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, table: Any) -> Any:
        if isinstance(table, str):
            table = {"kind": table}
        if not isinstance(table, Mapping) or "attack" in table:
            return table
        rest = {key: value for key, value in table.items() if key != "label"}
        kind = rest.get("kind")
        if not isinstance(kind, str):
            raise ConfigError('an attack is a table with a key kind, e.g. {label = "ALIE", kind = "alie", z = 1.5}')
        if kind == "none" and len(rest) > 1:
            raise ConfigError(f"'none' has no parameters, got {', '.join(sorted(set(rest) - {'kind'}))}")
        attack = None if kind == "none" else ATTACKS.build(rest)
        return {"label": table.get("label", kind), "attack": attack}

    @model_serializer(mode="plain")
    def _table(self) -> dict[str, Any]:
        return {"label": self.label, **({"kind": "none"} if self.attack is None else ATTACKS.table(self.attack))}


class Expected(Settings):
    """All rules against all attacks, for every honest set that the prior allows, with the same data.

    Reading ``"R1"``: the honest set S is drawn from ``prior`` once, everybody else attacks with full knowledge, and
    the model that comes out is scored by the loss of S; the training is run anew for every S. Reading ``"R2"``:
    everybody is honest, one training, scored by the expected honest loss. The two do not compare, and are never mixed.

    Rules that want a prior are told ``assumed``, by default the true one. All clients take part in every round with the
    gradient of their loss; ``lr`` is the constant step (left out: 1 / L, the largest smoothness constant of the honest
    losses), ``momentum`` that of the clients.
    """

    kind: Literal["expected"] = "expected"
    name: FolderName = "expected"
    description: str = ""
    reading: Literal["R1", "R2"] = "R1"
    seed: int = Field(0, ge=0)
    rounds: int = Field(80, ge=1)
    lr: float | None = Field(None, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    task: Task
    prior: PriorField
    assumed: PriorField | None = None
    sets: Sets = Sets()
    rule: tuple[Labelled, ...]
    attack: tuple[LabelledAttack, ...] = ()

    @field_validator("rule", "attack", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("attack", mode="after")
    @classmethod
    def _none(cls, value: tuple[LabelledAttack, ...]) -> tuple[LabelledAttack, ...]:
        return value or (LabelledAttack(label="none", attack=None),)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.rule:
            raise ConfigError("needs at least one [[rule]] with label and pipeline")
        for what, labels in (("rules", [r.label for r in self.rule]), ("attacks", [a.label for a in self.attack])):
            twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
            if twice is not None:
                raise ConfigError(f"two {what} have the label {twice!r}")
        if self.reading == "R2" and any(attack.attack is not None for attack in self.attack):
            raise ConfigError("reading R2 is about everybody being honest: leave the attacks out, or read R1")
        if self.task.kind == "model" and self.lr is None:
            raise ConfigError("lr: nothing is known about the smoothness of a model; give a learning rate")
        for entry in self.attack:
            _check_attack(entry, self.task)
        return self

    def table(self) -> dict[str, Any]:
        """The experiment as plain tables, everything resolved, without empty keys."""
        found: dict[str, Any] = json.loads(json.dumps(self.model_dump(mode="python")))
        return {key: value for key, value in found.items() if value is not None}

    def hash(self) -> str:
        """Sixteen hex digits of the full configuration, name and description aside."""
        table = {key: value for key, value in self.table().items() if key not in ("name", "description")}
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]

    def dumps(self) -> str:
        """The experiment as TOML."""
        return tomlkit.dumps(self.table())

    @classmethod
    def load(cls, path: str | Path) -> Expected:
        """Read a TOML file. Raises ConfigError with the file and the key."""
        return cls.from_table(read_toml(path), str(path))

    @classmethod
    def from_table(cls, table: Mapping[str, Any], source: str = "experiment") -> Expected:
        """Check a table as read from TOML; ``source`` is named in errors."""
        try:
            return cls.model_validate(dict(table))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, source)) from None


def _check_attack(entry: LabelledAttack, task: Task) -> None:
    """Raise unless attackers of this task can make the attack."""
    attack = entry.attack
    if attack is None:
        return
    if not isinstance(attack, Attack):
        raise ConfigError(f"attack {entry.label!r}: must be an attack, got {attack!r}")
    name = ATTACKS.name(attack)
    if attack.targeted:
        raise ConfigError(f"attack {entry.label!r}: {name!r} wants certain inputs misclassified; expected robustness "
                          "is about the honest loss: take an untargeted attack")  # fmt: skip
    if isinstance(attack, UpdateAttack) and attack.trains:
        raise ConfigError(f"attack {entry.label!r}: {name!r} trains a model; take one that is made from updates")
    if isinstance(attack, DataAttack) and task.kind == "ridge" and task.dataset == SYNTHETIC:
        from bezoar.expected.poison import flips_targets

        if not attack.numeric and not flips_targets(attack):
            raise ConfigError(f"attack {entry.label!r}: {name!r} changes classes, but the targets of synthetic ridge "
                              "regression are numbers: take label-flip (it negates them), or softmax")  # fmt: skip
