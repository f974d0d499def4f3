"""The equivalence as an experiment: gradient, model and data attack against each regulariser, from one TOML file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomlkit
import torch
from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, field_validator, model_validator
from torch import Tensor

from bezoar.attacks.gradient_to_data import GRADIENT_TO_DATA, Equiprobable, GradientToData, Points
from bezoar.data import load
from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments import environment
from bezoar.experiments.config import DatasetName, Model, Settings, explain, folder_name, read_toml
from bezoar.experiments.records import CONFIG, METRICS, SUMMARY, guarded, plain, write_atomically, write_summary
from bezoar.personalized.attacks import GradientAttack, Malicious, ModelAttack
from bezoar.personalized.losses import SoftmaxRegression, TorchLoss, UserLoss
from bezoar.personalized.problem import Problem
from bezoar.personalized.reductions import gradient_to_model, holding_gradient, model_to_data, spread_start
from bezoar.personalized.regularizers import REGULARIZERS, Regularizer, SquaredL2
from bezoar.personalized.training import Joint, Models, initial, train
from bezoar.seeding import derive, generator

KIND = "personalized"
Attack = Literal["none", "gradient", "model", "data"]

RegularizerField = Annotated[Regularizer, PlainValidator(REGULARIZERS.build), PlainSerializer(REGULARIZERS.table)]
WayField = Annotated[GradientToData, PlainValidator(GRADIENT_TO_DATA.build), PlainSerializer(GRADIENT_TO_DATA.table)]


class Data(Settings):
    """``users`` honest users with ``samples`` training samples each, drawn without replacement.

    ``normalise=false`` leaves inputs in [0, 1].
    """

    dataset: DatasetName
    users: int = Field(10, ge=1)
    samples: int = Field(6000, ge=1)
    normalise: bool = False


class Training(Settings):
    """Full-batch steps on all models at once; the learning rate falls from ``lr`` to ``floor``."""

    epochs: int = Field(250, ge=1)
    lr: float = Field(0.02, gt=0)
    decay: float = Field(0.99, gt=0, le=1)
    floor: float = Field(0.005, ge=0)
    optimizer: Literal["adam", "sgd"] = "adam"

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.floor > self.lr:
            raise ConfigError(f"floor={self.floor} is above lr={self.lr}")
        return self

    @property
    def joint(self) -> Joint:
        """As the training loop takes it."""
        return Joint(self.epochs, self.lr, self.decay, self.floor, self.optimizer)


class Target(Training):
    """The model that the attacker wants: trained on all training samples, labelled (y + ``shift``) mod C."""

    epochs: int = Field(100, ge=1)
    decay: float = Field(1.0, gt=0, le=1)
    shift: int = Field(1, ge=1)


class Poison(Settings):
    """The data attack: how a model becomes data, and how far (``spread``) from it the poisoned user's model starts."""

    way: WayField = Equiprobable()
    spread: float = Field(0.1, ge=0)


class Equivalence(Settings):
    """All attacks against all regularisers, with the same data, first models and target."""

    kind: Literal["personalized"] = "personalized"
    name: str = "equivalence"
    description: str = ""
    seed: int = Field(0, ge=0)
    data: Data
    model: Model = Model(name="linear")
    regularizers: tuple[RegularizerField, ...] = (SquaredL2(),)
    attacks: tuple[Attack, ...] = ("none", "gradient", "model", "data")
    ridge: float = Field(0.0, ge=0)
    training: Training = Training()
    target: Target = Target()
    poison: Poison = Poison()
    every: int = Field(50, ge=1)

    @field_validator("regularizers", "attacks", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        folder_name(self.name)
        if not self.regularizers or not self.attacks:
            raise ConfigError("needs at least one regulariser and one attack")
        if len(set(self.attacks)) < len(self.attacks) or len(set(self.regularizers)) < len(self.regularizers):
            raise ConfigError("an attack or a regulariser is given twice")
        if {"model", "data"} & set(self.attacks) and "gradient" not in self.attacks:
            raise ConfigError("the model and the data attack start from where the gradient attack ends: add 'gradient'")
        if self.model.lora is not None or self.model.trainable is not None or self.model.files:
            raise ConfigError("model: personalised models are trained as a whole, from the seed: no lora, no files")
        if "data" in self.attacks and self.model.name != "linear":
            raise ConfigError(f"the data attack is for the linear model, not {self.model.name!r}; leave 'data' out")
        return self

    def table(self) -> dict[str, Any]:
        """The experiment as plain tables, everything resolved."""
        found: dict[str, Any] = json.loads(json.dumps(self.model_dump(mode="python")))
        return found

    def hash(self) -> str:
        """Sixteen hex digits of the full configuration, name and description aside."""
        table = {key: value for key, value in self.table().items() if key not in ("name", "description")}
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path) -> Equivalence:
        """Read a TOML file. Raises ConfigError with the file and the key."""
        return cls.from_table(read_toml(path), str(path))

    @classmethod
    def from_table(cls, table: Mapping[str, Any], source: str = "experiment") -> Equivalence:
        """Check a table as read from TOML; ``source`` is named in errors."""
        try:
            return cls.model_validate(dict(table))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, source)) from None


@dataclass(frozen=True)
class EquivalenceResult:
    """A finished run: its summary, and one record for each evaluation."""

    summary: dict[str, Any]
    evaluations: list[dict[str, Any]]
    directory: Path | None


Progress = Callable[[Mapping[str, Any]], None]


def run(
    experiment: Equivalence,
    out: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    command: str | None = None,
) -> EquivalenceResult:
    """Run all attacks against all regularisers, and record them in the directory ``out`` (None: in memory only).

    A run without a summary in ``out`` failed or was broken off: it is started again from the beginning, with a warning.

    Raises:
        ConfigError: ``out`` holds a finished run or one of another kind, the data set is too small for the users, or
            the target's labels are the right ones.
        DivergedError: models are no longer finite.
        DataError: data are missing or damaged.
    """
    folder = None if out is None else Path(out)
    records: list[dict[str, Any]] = []
    again = folder is not None and _unfinished(folder)
    bench = _prepare(experiment, data_dir, torch.device(device))
    if folder is not None:
        with guarded(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if again:
                warnings.warn(f"{folder}: holds an unfinished run; it is started again", stacklevel=2)
                (folder / METRICS).unlink(missing_ok=True)
        write_atomically(folder / CONFIG, tomlkit.dumps(experiment.table()))
    begin = time.perf_counter()
    results = []
    for tie in experiment.regularizers:
        ends: dict[str, Models] = {}
        for name, models, record in _cells(experiment, bench, tie):
            entry = plain(record)
            records.append(entry)
            if folder is not None:
                with guarded(folder / METRICS), (folder / METRICS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry, allow_nan=False) + "\n")
            if progress is not None:
                progress(entry)
            if models.epoch == experiment.training.epochs:
                ends[name] = models
                results.append(_with_gaps(entry, ends))
    summary = plain(
        {
            "kind": KIND,
            "name": experiment.name,
            "seed": experiment.seed,
            "target": bench.figures,
            "results": results,
            "seconds": {"total": time.perf_counter() - begin},
            "command": command,
            "versions": environment.versions(),
            "hardware": environment.hardware(torch.device(device)),
            "commit": environment.commit(),
            "hash": experiment.hash(),
        }
    )
    if folder is not None:
        write_summary(folder, summary)
    return EquivalenceResult(summary, records, folder)


def _unfinished(folder: Path) -> bool:
    """Whether ``folder`` holds a run of this kind without a summary. Raises ConfigError if what it holds shall stay."""
    if not (folder / CONFIG).exists():
        return False
    if (folder / SUMMARY).exists() or read_toml(folder / CONFIG).get("kind") != KIND:
        raise ConfigError(f"{folder}: already holds a run; choose another --out")
    return True


@dataclass(frozen=True, eq=False)
class _Bench:
    """What all cells share."""

    loss: UserLoss
    users: tuple[Points, ...]
    test: Points
    target: Tensor
    figures: dict[str, float]

    def accuracy(self, theta: Tensor, data: Points | None = None) -> float:
        data = self.test if data is None else data
        right = self.loss.outputs(theta, data.inputs).argmax(1) == data.targets
        return float(right.double().mean())


def _prepare(experiment: Equivalence, data_dir: str | Path | None, device: torch.device) -> _Bench:
    config = experiment.data
    dataset = load(config.dataset, data_dir, normalise=config.normalise)
    if dataset.vocabulary is not None:
        raise ConfigError(f"data.dataset: {config.dataset} is text; personalised models read numbers")
    needed = config.users * config.samples
    if needed > len(dataset.train):
        raise ConfigError(
            f"data: {config.users} users with {config.samples} samples need {needed}, {config.dataset} has "
            f"{len(dataset.train)} training samples"
        )
    classes = len(dataset.classes)
    if experiment.target.shift % classes == 0:
        raise ConfigError(
            f"target.shift: labels of {config.dataset} shifted by {experiment.target.shift} are the right ones again; "
            f"give a number that {classes} does not divide"
        )
    flat = experiment.model.name == "linear"
    inputs = dataset.batch(dataset.train, slice(None)).to(device)
    tests = dataset.batch(dataset.test, slice(None)).to(device)
    if flat:
        inputs, tests = inputs.flatten(1), tests.flatten(1)
        loss: UserLoss = SoftmaxRegression(inputs.shape[1], classes)
    else:
        loss = TorchLoss(experiment.model.build(dataset, experiment.seed).model.to(device))
    labels = dataset.train.targets.to(device)
    order = torch.randperm(len(labels), generator=generator(experiment.seed, "personalised users' samples")).to(device)
    parts = order[:needed].view(config.users, config.samples)
    users = tuple(Points(inputs[rows], labels[rows]) for rows in parts)
    wrong = Points(inputs, (labels + experiment.target.shift) % classes)
    # Without a tie there is nothing personal about it: one user's own training, from a draw of its own.
    alone = Problem(loss, (wrong,), _Untied())
    start = initial(alone, derive(experiment.seed, "personalised target"))
    target = train(alone, experiment.target.joint, start).thetas[0]
    test = Points(tests, dataset.test.targets.to(device))
    bench = _Bench(loss, users, test, target, {})
    figures = {"train_accuracy_shifted": bench.accuracy(target, wrong), "test_accuracy": bench.accuracy(target)}
    return dataclasses.replace(bench, figures=figures)


class _Untied(SquaredL2):
    """No tie at all: lambda = 0, which the regularisers themselves refuse."""

    def pull(self, r: Tensor) -> Tensor:
        return torch.zeros_like(r)

    def of_distance(self, r: Tensor) -> Tensor:
        return torch.zeros_like(r)


def _cells(experiment: Equivalence, bench: _Bench, tie: Regularizer) -> Iterator[tuple[str, Models, dict[str, Any]]]:
    """Every evaluation against one regulariser: the attack's name, the models, the record."""
    problem = Problem(bench.loss, bench.users, tie, experiment.ridge)
    fresh = initial(problem, experiment.seed)
    held: Models | None = None
    for name in sorted(experiment.attacks, key=("none", "gradient", "model", "data").index):
        cell, start = problem, fresh
        attack: Malicious | None = None
        if name == "gradient":
            attack = GradientAttack(bench.target, "seen")
        elif name in ("model", "data"):
            assert held is not None
            theta = _model(problem, held, bench.target)
            if name == "model":
                attack = ModelAttack(theta)
            else:
                cell, start = _poisoned(experiment, problem, held, fresh, theta)
        for models in _train(cell, experiment, start, attack):
            yield name, models, _record(bench, cell, name, models)
            if name == "gradient":
                held = models


def _train(problem: Problem, experiment: Equivalence, models: Models, attack: Malicious | None) -> Iterator[Models]:
    """The models every so many epochs, and at the end."""
    last = experiment.training.epochs
    stops = [*range(0, last, experiment.every), last]
    for stop in stops:
        if stop:
            models = train(problem, dataclasses.replace(experiment.training.joint, epochs=stop), models, attack)
        yield models


def _model(problem: Problem, held: Models, target: Tensor) -> Tensor:
    """The model attack that holds rho where the gradient attack left it."""
    g = holding_gradient(problem, held.rho, held.thetas)
    gap = float(torch.linalg.vector_norm(held.rho - target))
    return gradient_to_model(problem.regularizer, held.rho, g, distance=max(gap, 1e-3))


def _poisoned(
    experiment: Equivalence, problem: Problem, held: Models, start: Models, theta: Tensor
) -> tuple[Problem, Models]:
    """The problem with the poisoned user, and its first models."""
    way = experiment.poison.way
    if isinstance(way, Equiprobable):
        way = dataclasses.replace(way, seed=derive(experiment.seed, "poison", way.seed))
    cell = problem.with_user(model_to_data(problem, held.rho, theta, way))
    own = spread_start(theta, experiment.poison.spread, generator(experiment.seed, "poisoned user's first model"))
    return cell, dataclasses.replace(start, thetas=torch.cat([start.thetas, own[None]]))


def _record(bench: _Bench, cell: Problem, name: str, models: Models) -> dict[str, Any]:
    honest = models.thetas[: len(bench.users)]
    return {
        "kind": "evaluation",
        "regularizer": REGULARIZERS.name(cell.regularizer),
        "strength": cell.regularizer.strength,
        "attack": name,
        "epoch": models.epoch,
        "test_accuracy": bench.accuracy(models.rho),
        "users_accuracy": sum(bench.accuracy(theta) for theta in honest) / len(honest),
        "distance_to_target": float(torch.linalg.vector_norm(models.rho - bench.target)),
        "poison_samples": len(cell.data[-1]) if name == "data" else None,
    }


def _with_gaps(entry: Mapping[str, Any], ends: Mapping[str, Models]) -> dict[str, Any]:
    """The last record of a cell, and how far its rho is from that of the gradient attack."""
    found = dict(entry)
    if "gradient" in ends and entry["attack"] in ends:
        gap = ends[str(entry["attack"])].rho - ends["gradient"].rho
        found["distance_to_gradient_attack"] = float(torch.linalg.vector_norm(gap))
    return found


def table_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Rows of the table that is printed: regulariser, attack, accuracies in per cent, distance to the target."""
    if summary.get("kind") != KIND:
        raise BezoarError("this is no summary of a personalised run")
    return [
        (
            str(row["regularizer"]),
            str(row["attack"]),
            f"{100 * row['test_accuracy']:.2f}",
            f"{100 * row['users_accuracy']:.2f}",
            f"{row['distance_to_target']:.3g}",
        )
        for row in summary["results"]
    ]
