"""One description of an experiment, for TOML files, the command line and Python alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomlkit
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticSerializationError

from bezoar.attacks import ATTACKS, Attack, Knowledge, UpdateAttack
from bezoar.clients import CLIENTS, Clients, Gradient
from bezoar.data import DATASETS, PARTITIONS, SAMPLINGS, Dataset, Partition, Sampling
from bezoar.errors import ConfigError, nearest
from bezoar.experiments import readings
from bezoar.experiments.defence import Defence, defence
from bezoar.experiments.honesty import FromData, prior_table, read_prior
from bezoar.models import MODELS, Built, LoRA, built, make_model
from bezoar.priors import HonestPrior
from bezoar.regime import regime
from bezoar.registry import Registry
from bezoar.servers.schedules import SCHEDULES, Schedule


def _attack(table: Any) -> Attack | None:
    if table is None or table == "none" or (isinstance(table, Mapping) and table.get("kind") == "none"):
        return None
    return ATTACKS.build(table)


def _knowledge(value: Any) -> Knowledge:
    names = {level.label: level for level in Knowledge}
    if isinstance(value, Knowledge):
        return value
    if value not in names:
        raise ConfigError(f"unknown knowledge {value!r}; {nearest(str(value), names)}")
    return names[value]


def _field(registry: Registry[Any]) -> tuple[PlainValidator, PlainSerializer]:
    return PlainValidator(registry.build), PlainSerializer(registry.table)


def _dataset(name: str) -> str:
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}; {nearest(name, DATASETS)}")
    return name


def folder_name(name: str) -> str:
    """``name``, if a folder may be called that."""
    if not name or any(character in name for character in "/\\\0") or name in (".", ".."):
        raise ConfigError(f"name must be usable as a folder name, got {name!r}")
    return name


#: What records are kept under.
FolderName = Annotated[str, AfterValidator(folder_name)]

#: The name of a registered data set.
DatasetName = Annotated[str, AfterValidator(_dataset)]
PartitionField = Annotated[Partition, *_field(PARTITIONS)]
SamplingField = Annotated[Sampling, *_field(SAMPLINGS)]
ClientsField = Annotated[Clients, *_field(CLIENTS)]
ScheduleField = Annotated[Schedule, *_field(SCHEDULES)]
DefenceField = Annotated[Defence, PlainValidator(defence), PlainSerializer(Defence.table)]
AttackField = Annotated[
    Attack | None,
    PlainValidator(_attack),
    PlainSerializer(lambda attack: {"kind": "none"} if attack is None else ATTACKS.table(attack)),
]


PriorField = Annotated[HonestPrior | FromData | None, PlainValidator(read_prior), PlainSerializer(prior_table)]


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors, values are not coerced, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Groups(Settings):
    """The groups of a natural column (plays, writers) in part ``part`` of ``parts``: every ``parts``-th one, from the
    one with number ``part``. Experiments on different parts share neither training nor test samples of a group."""

    column: str
    part: int = Field(ge=0)
    parts: int = Field(ge=2)

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.part >= self.parts:
            raise ConfigError(f"part must be in 0..{self.parts - 1}, got {self.part}")
        return self


class Data(Settings):
    """The data set and how it is divided over clients.

    ``dataset`` is a registered name; ``augment`` turns on its training augmentation (CIFAR); ``normalise = false``
    leaves inputs in [0, 1]. ``groups`` keeps a part of the data set alone, training and test samples.
    """

    dataset: DatasetName
    partition: PartitionField
    augment: bool = False
    normalise: bool = True
    groups: Groups | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Experiments from before a key existed keep their hashes: it stays out at its default."""
        table: dict[str, Any] = handler(self)
        return {key: value for key, value in table.items() if key != "normalise" or not value}


class Lora(Settings):
    """Low-rank adapters of the linear layers that ``targets`` name, on a frozen model
    (:func:`bezoar.models.add_lora`); ``seed``: what they are drawn from, the experiment's by default."""

    targets: tuple[str, ...] = Field(strict=False, min_length=1)
    rank: int = Field(8, ge=1)
    alpha: float = Field(8.0, gt=0)
    seed: int | None = Field(None, ge=0)


class Model(BaseModel):
    """The model: a registered name or ``package.module:factory``; further keys are the factory's options.

    ``weights`` are safetensors files that it starts from, instead of from the seed. ``trainable`` are patterns of the
    parameters that are trained, all others being frozen (``["blocks.1.*", "head"]``); with ``lora`` these are the
    adapters, and what the patterns name besides.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    weights: str | tuple[str, ...] | None = None
    trainable: tuple[str, ...] | None = Field(None, min_length=1)
    lora: Lora | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Experiments from before a key existed keep their hashes: it stays out at its default."""
        table: dict[str, Any] = handler(self)
        added = ("weights", "trainable", "lora")
        return {key: value for key, value in table.items() if key not in added or value is not None}

    @property
    def files(self) -> tuple[str, ...]:
        """The files of weights."""
        return (self.weights,) if isinstance(self.weights, str) else self.weights or ()

    def build(self, dataset: Dataset, seed: int) -> Built:
        """The model for samples of ``dataset``, initialised from ``seed`` and its files. Raises ConfigError."""
        for option in self.options:
            if option in ("shape", "classes", "seed", "names"):
                raise ConfigError(f"{option}: follows from the data set and the experiment's seed; leave it out")
        lora = self.lora
        adapters = None
        if lora is not None:
            adapters = LoRA(lora.targets, lora.rank, lora.alpha, seed if lora.seed is None else lora.seed)
        vocabulary = dataset.vocabulary
        names = () if vocabulary is None else vocabulary.names
        made = make_model(self.name, dataset.shape, len(dataset.classes), seed, names=names, **self.options)
        return built(made, self.files, self.trainable, adapters)

    @property
    def options(self) -> dict[str, Any]:
        """The factory's options."""
        return dict(self.model_extra or {})

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS and ":" not in name:
            raise ConfigError(f"unknown model {name!r}; {nearest(name, MODELS)}, or package.module:factory")
        return name


class Adversary(Settings):
    """Who is malicious, what they know, and when they attack.

    Of all clients either ``count`` or a ``share`` is malicious, drawn from the seed, or exactly the ``clients`` listed,
    or those that a draw from ``prior`` says. How many of them a round's cohort holds is then random; ``per_round``
    makes it exactly that many. ``which = "last"`` takes the clients with the highest ids instead of drawing the
    ``count`` or ``share``. ``sybils`` are extra clients without data of their own: they hold copies of the malicious
    clients' samples (or what the attack gives them) and join every cohort while the attack runs.

    ``knowledge`` is what the attackers know: ``"none"``, ``"own-data"``, ``"model"`` (the global model and the last
    aggregate), ``"honest-updates"`` (of the round), ``"defence"`` (the rule and its memory); each includes those
    before. Attacks that are made from honest updates are made from the attackers' own, if they do not know those.

    The attack runs every ``every`` rounds from round ``start`` to round ``stop`` (both included; no ``stop``: to the
    end).
    """

    count: int | None = Field(None, ge=0)
    share: float | None = Field(None, ge=0, le=1)
    clients: tuple[int, ...] | None = Field(None, strict=False)
    prior: PriorField = None
    per_round: int | None = Field(None, ge=0)
    which: Literal["drawn", "last"] = "drawn"
    sybils: int = Field(0, ge=0)
    knowledge: Annotated[Knowledge, PlainValidator(_knowledge), PlainSerializer(lambda level: level.label)] = (
        Knowledge.DEFENCE
    )
    start: int = Field(1, ge=1)
    stop: int | None = Field(None, ge=1)
    every: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in ("count", "share", "clients", "prior") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"give one of count, share, clients and prior of malicious clients, not {' and '.join(given)}"
            )
        if self.which == "last" and self.count is None and self.share is None:
            raise ConfigError("which = 'last' says which clients a count or a share are: set adversary.count or .share")
        if self.stop is not None and self.stop < self.start:
            raise ConfigError(f"stop={self.stop} is before start={self.start}")
        ids = self.clients or ()
        if len(set(ids)) < len(ids) or min(ids, default=0) < 0:
            raise ConfigError(f"clients must be different ids >= 0, got {list(ids)}")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Experiments from before a key existed keep their hashes: it stays out at its default."""
        table: dict[str, Any] = handler(self)
        added = {"which": "drawn", "sybils": 0, "knowledge": Knowledge.DEFENCE.label, "every": 1}
        return {key: value for key, value in table.items() if key not in added or value != added[key]}

    @property
    def absent(self) -> bool:
        """Whether nobody is malicious."""
        return not (self.count or self.share or self.clients or self.prior or self.sybils)

    def active(self, round: int) -> bool:
        """Whether the attack runs in ``round``."""
        inside = self.start <= round and (self.stop is None or round <= self.stop)
        return inside and (round - self.start) % self.every == 0


class Evaluation(Settings):
    """When and how the global model is tested.

    ``every`` rounds and after the last one; ``batch_size`` test samples at a time; ``twin`` also runs the same
    experiment without its attack and reports the distance between the two models (doubles the time); ``measure``
    records in every round how far the honest updates lie apart and how far the aggregate is from their mean.
    """

    every: int = Field(50, ge=1)
    batch_size: int = Field(1000, ge=1)
    twin: bool = False
    measure: bool = False

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        table: dict[str, Any] = handler(self)
        return {key: value for key, value in table.items() if key != "measure" or value}


class Experiment(Settings):
    """A federation, an adversary, a defence and a seed: everything that decides the result.

    A ``prior`` is what the server knows of who may be malicious: rules without a prior of their own are told it, and
    unless the adversary says who is malicious, that is a draw from it.

    A ``reading`` of the SparseFed paper sets what the other tables leave open, as the paper prints it or a revision of
    its code has it (``bezoar list readings``).

    Load it from TOML with :meth:`load`, write it with :meth:`dump`, run it with :func:`bezoar.run`.
    """

    name: FolderName = "experiment"
    description: str = ""
    reading: Annotated[str, AfterValidator(readings.check)] | None = None
    seed: int = Field(0, ge=0)
    rounds: int = Field(ge=1)
    data: Data
    model: Model
    learning_rate: ScheduleField
    sampling: SamplingField
    clients: ClientsField = Gradient()
    prior: PriorField = None
    adversary: Adversary = Adversary()
    attack: AttackField = None
    defence: DefenceField
    evaluation: Evaluation = Evaluation()
    checkpoint_every: int = Field(50, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, table: Any) -> Any:
        name = table.get("reading") if isinstance(table, Mapping) else None
        return readings.read(table, name) if isinstance(name, str) and name in readings.READINGS else table

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.attack is not None and self.harmless:
            raise ConfigError("there is an attack but nobody is malicious: set adversary.count or adversary.share")
        if self.prior is not None and (self.adversary.count is not None or self.adversary.share is not None):
            key = "count" if self.adversary.count is not None else "share"
            raise ConfigError(
                f"[prior] and adversary.{key} both say who is malicious: leave out adversary.{key} to draw from it; "
                f"to tell rules something else than what is drawn from, give adversary.prior (or adversary.clients)"
            )
        if self.attack is not None and self.adversary.knowledge < self.attack.least:
            name, least = ATTACKS.name(self.attack), self.attack.least.label
            raise ConfigError(
                f"adversary.knowledge is {self.adversary.knowledge.label!r}, but {name!r} needs at least {least!r}"
            )
        if self.attack is None and self.evaluation.twin:
            raise ConfigError("evaluation.twin compares with the run without attack, but there is no attack")
        per_round = self.adversary.per_round
        if per_round is not None and isinstance(self.attack, UpdateAttack) and per_round >= self.sampling.cohort:
            raise ConfigError(
                f"adversary.per_round={per_round} leaves no honest client in a cohort of {self.sampling.cohort}"
            )
        return self

    @property
    def harmless(self) -> bool:
        """Whether nobody can be malicious."""
        return self.adversary.absent and self.prior is None

    def table(self) -> dict[str, Any]:
        """The experiment as plain tables, everything resolved, without empty keys."""
        try:
            table: dict[str, Any] = _without_none(self.model_dump(mode="python"))
        except PydanticSerializationError as error:
            raise ConfigError(str(error).rpartition("ConfigError: ")[2]) from None
        if self.reading is None:
            return table
        defaults = {f"adversary.{key}": spec.default for key, spec in Adversary.model_fields.items()}
        return readings.spelt_out(table, self.reading, defaults)

    @property
    def regime(self) -> str:
        """What the experiment's regime is called, for example ``"FedAvg + adaptive clipping"``."""
        return regime(self.table())

    def hash(self) -> str:
        """Sixteen hex digits of the full configuration, name and description aside."""
        table = {key: value for key, value in self.table().items() if key not in ("name", "description")}
        table.pop("checkpoint_every")
        text = json.dumps(table, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def without_attack(self) -> Experiment:
        """The twin: the same experiment and seed in which nobody attacks.

        Its cohorts are the same, unless they depend on what attackers hold (``sampling.batch_size``).
        """
        evaluation = self.evaluation.model_copy(update={"twin": False})
        return self.model_copy(update={"attack": None, "evaluation": evaluation})

    def dumps(self) -> str:
        """The experiment as TOML."""
        return tomlkit.dumps(self.table())

    def dump(self, path: str | Path) -> None:
        """Write the experiment to a TOML file."""
        Path(path).write_text(self.dumps(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
        """Read a TOML file; ``overrides`` maps dotted keys (``"model.width"``) to values; the key
        ``scale`` chooses one of the file's scales.

        Raises:
            ConfigError: names the file, the key and the nearest right one.
        """
        from bezoar.experiments.scales import at_scale

        table = read_toml(path)
        if "grid" in table:
            raise ConfigError(f"{path}: this is a grid of experiments; run it with 'bezoar compare'")
        table, values, _ = at_scale(table, overrides, str(path))
        return cls.from_table(override(table, values), source=str(path))

    @classmethod
    def from_table(cls, table: Mapping[str, Any], source: str = "experiment") -> Experiment:
        """Check a table as read from TOML; ``source`` is named in errors."""
        try:
            return cls.model_validate(dict(table))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, source)) from None


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as plain tables. Raises ConfigError if it can not be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can not be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        table: dict[str, Any] = dict(tomlkit.parse(text).unwrap())
    except tomlkit.exceptions.ParseError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return table


def override(table: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``table`` with dotted keys set.

    >>> override({"model": {"name": "cnn"}}, {"model.width": 8})
    {'model': {'name': 'cnn', 'width': 8}}
    """
    out = dict(table)
    for dotted, value in values.items():
        *path, last = dotted.split(".")
        here = out
        for step in path:
            inner = here.get(step, {})
            if not isinstance(inner, Mapping):
                raise ConfigError(f"can not set {dotted!r}: {step!r} is {inner!r}, not a table")
            here[step] = dict(inner)
            here = here[step]
        here[last] = value
    return out


def parse_value(text: str) -> Any:
    """A value as in TOML; what is no TOML value is a string.

    >>> parse_value("3"), parse_value("[1, 2]"), parse_value("1%")
    (3, [1, 2], '1%')
    """
    try:
        return tomlkit.parse(f"value = {text}").unwrap()["value"]
    except tomlkit.exceptions.ParseError:
        return text


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """One line for the first thing that is wrong: the file, the key, what would be right."""
    first = error.errors()[0]
    path = [str(step) for step in first["loc"]]
    key = ".".join(path)
    where = f"{source}: {key}" if key else source
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        return f"{source}: unknown key {key!r}; {nearest(path[-1], known)}{more}"
    if first["type"] == "missing":
        return f"{source}: the key {key!r} is missing{more}"
    message = str(first["msg"]).removeprefix("Value error, ")
    given = first.get("input")
    plain = isinstance(given, int | float | str | bool) and first["type"] != "value_error"
    shown = f", got {given!r}" if plain else ""
    return f"{where}: {message[:1].lower() + message[1:]}{shown}{more}"


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for step in path:
        annotation = model.model_fields[step].annotation
        # A section that may be absent is the section or None.
        choices = [part for part in get_args(annotation) or (annotation,) if part is not type(None)]
        if len(choices) != 1 or not (isinstance(choices[0], type) and issubclass(choices[0], BaseModel)):
            return []
        model = choices[0]
    return list(model.model_fields)
