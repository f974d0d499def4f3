"""A model that federations start from: trained centrally on data of its own, recorded like any experiment.

A TOML file with ``kind = "pretraining"`` describes it, ``bezoar run`` runs it, and ``model.weights`` of a federation
reads the weights it leaves. With ``data.groups`` the two share neither training nor test samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomlkit
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bezoar.data import Dataset, load
from bezoar.data.dataset import as_input
from bezoar.errors import ConfigError, DivergedError
from bezoar.experiments import environment
from bezoar.experiments.config import DatasetName, FolderName, Groups, Model, ScheduleField, Settings, explain
from bezoar.experiments.records import (
    CONFIG,
    METRICS,
    WEIGHTS,
    alone,
    guarded,
    plain,
    save_tensors,
    write_atomically,
    write_summary,
)
from bezoar.experiments.run import Progress
from bezoar.models import MODELS
from bezoar.models.files import kept
from bezoar.seeding import generator

KIND = "pretraining"

#: Test samples at a time.
_CHUNK = 1000


class Data(Settings):
    """The data set, or the part of its ``groups`` that the model is trained on."""

    dataset: DatasetName
    normalise: bool = True
    groups: Groups | None = None


class Pretraining(Settings):
    """AdamW on batches drawn from all training samples; gradients are clipped to ``clip``.

    A model that can (:meth:`bezoar.models.transformer.Transformer.every`) is asked for the token after every position
    of a sample, any other for the sample's label.
    """

    kind: Literal["pretraining"] = "pretraining"
    name: FolderName = "pretraining"
    description: str = ""
    seed: int = Field(0, ge=0)
    data: Data
    model: Model
    steps: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: ScheduleField
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    every: int = Field(250, ge=1)

    def table(self) -> dict[str, Any]:
        """Plain tables, everything resolved, without empty keys."""
        found: dict[str, Any] = self.model_dump(mode="python", exclude_none=True)
        return found

    def hash(self) -> str:
        """Sixteen hex digits of the full configuration, name and description aside."""
        table = {key: value for key, value in self.table().items() if key not in ("name", "description")}
        return hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @classmethod
    def from_table(cls, table: Mapping[str, Any], source: str = "pretraining") -> Pretraining:
        """Check a table as read from TOML; ``source`` is named in errors."""
        try:
            return cls.model_validate(dict(table))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, source)) from None


@dataclass(frozen=True)
class Pretrained:
    """What it left: the summary, one record for each evaluation, and the weights as in their file."""

    summary: dict[str, Any]
    evaluations: list[dict[str, Any]]
    weights: dict[str, Tensor]
    directory: Path | None


def run(
    experiment: Pretraining,
    out: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    command: str | None = None,
) -> Pretrained:
    """Train the model and record it in the directory ``out`` (None: in memory only).

    Raises:
        ConfigError: ``out`` holds a run already, or parts do not fit together.
        DataError: data are missing or damaged.
        DivergedError: the loss is no longer finite.
        BusyError: another process is running in ``out``.
    """
    if out is None:
        return _run(experiment, None, data_dir, torch.device(device), progress, command)
    with alone(Path(out)):
        return _run(experiment, Path(out), data_dir, torch.device(device), progress, command)


def _run(
    experiment: Pretraining,
    folder: Path | None,
    data_dir: str | Path | None,
    device: torch.device,
    progress: Progress | None,
    command: str | None,
) -> Pretrained:
    if folder is not None and (folder / CONFIG).exists():
        raise ConfigError(f"{folder}: already holds a run; choose another --out")
    dataset = _dataset(experiment, data_dir)
    found = experiment.model.build(dataset, experiment.seed)
    model, begin = found.model.to(device), time.perf_counter()
    if folder is not None:
        write_atomically(folder / CONFIG, tomlkit.dumps(experiment.table()))
    records: list[dict[str, Any]] = []
    for record in _train(experiment, dataset, model, device):
        records.append(plain(record))
        if folder is not None:
            with guarded(folder / METRICS), (folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1], allow_nan=False) + "\n")
        if progress is not None:
            progress(records[-1])
    weights, metadata = kept(model)
    digest = None
    if folder is not None:
        save_tensors(folder / WEIGHTS, weights, {"format": "pt", **metadata})
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    summary = {
        "kind": KIND,
        "name": experiment.name,
        "seed": experiment.seed,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **({"model": dict(found.facts)} if found.facts else {}),
        "train_samples": len(dataset.train),
        "test_samples": len(dataset.test),
        **{key: records[-1][key] for key in ("step", "test_accuracy", "test_loss")},
        "weights_sha256": digest,
        "seconds": {"total": time.perf_counter() - begin},
        "command": command,
        "versions": environment.versions(),
        "hardware": environment.hardware(device),
        "commit": environment.commit(),
        "hash": experiment.hash(),
    }
    if folder is not None:
        write_summary(folder, summary)
    return Pretrained(plain(summary), records, weights, folder)


def _dataset(experiment: Pretraining, data_dir: str | Path | None) -> Dataset:
    data, kind = experiment.data, MODELS.get(experiment.model.name)
    dataset = load(data.dataset, data_dir, normalise=data.normalise)
    if kind is not None and kind.tokens != (dataset.vocabulary is not None):
        what = "numbers" if kind.tokens else "tokens"
        raise ConfigError(f"model.name: {kind.name!r} can not read {dataset.name}, whose samples are {what}")
    groups = data.groups
    return dataset if groups is None else dataset.of_groups(groups.column, groups.part, groups.parts)


def _train(
    experiment: Pretraining, dataset: Dataset, model: nn.Module, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Train ``model`` in place; a record every so many steps and at the end."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=experiment.weight_decay)
    for step in range(1, experiment.steps + 1):
        lr = experiment.learning_rate.at(step, experiment.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        draws = generator(experiment.seed, "pretraining", step)
        rows = torch.randint(len(dataset.train), (experiment.batch_size,), generator=draws)
        model.train()
        inputs = as_input(dataset.batch(dataset.train, rows), device)
        loss = mean_loss(model, inputs, dataset.train.targets[rows].to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, experiment.clip)
        optimizer.step()
        if step % experiment.every == 0 or step == experiment.steps:
            last = float(loss.detach())
            if not math.isfinite(last):
                raise DivergedError(f"the loss is no longer finite in step {step}")
            yield {"kind": "evaluation", "step": step, "lr": lr, "train_loss": last, **scored(model, dataset, device)}


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy: of the token after every position that the model reads, where it can tell; else of the
    labels ``targets`` [N]."""
    every = getattr(model, "every", None)
    if every is None:
        return cross_entropy(model(inputs), targets)
    logits = every(inputs)
    following = torch.cat([inputs[:, 1:], targets[:, None]], 1)[:, -logits.shape[1] :]
    return cross_entropy(logits.flatten(0, 1), following.flatten())


def scored(model: nn.Module, dataset: Dataset, device: torch.device) -> dict[str, float]:
    """Accuracy and mean loss on the test samples."""
    right = loss = 0.0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(dataset.test), _CHUNK):
            part = slice(start, start + _CHUNK)
            outputs = model(as_input(dataset.batch(dataset.test, part), device))
            targets = dataset.test.targets[part].to(device)
            right += float((outputs.argmax(1) == targets).sum())
            loss += float(cross_entropy(outputs, targets, reduction="none").double().sum())
    return {"test_accuracy": right / len(dataset.test), "test_loss": loss / len(dataset.test)}
