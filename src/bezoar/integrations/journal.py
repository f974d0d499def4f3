"""What a federation leaves on disk: the files of a run directory, which ``bezoar report`` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomlkit
import torch
from torch import Tensor

from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments import environment
from bezoar.experiments.records import CONFIG, WEIGHTS, Records, load_tensors, read_summary
from bezoar.experiments.run import attacked
from bezoar.integrations.coordinator import Memory, Status, Verdict
from bezoar.integrations.gate import Array

#: Where the accuracy and the loss stand in what an evaluation reports, in the order in which they are looked for.
ACCURACY = ("test_accuracy", "test-accuracy", "accuracy", "eval_acc", "eval-acc", "centralized_accuracy", "acc")
LOSS = ("test_loss", "test-loss", "loss", "eval_loss", "eval-loss", "centralized_loss")

#: The package of every framework, by the kind of the settings.
PACKAGES = {"flower": "flwr", "nvflare": "nvflare"}


class Journal:
    """The records of one federation, on disk if there is a folder."""

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self._text = tomlkit.dumps(settings)
        self.digest = hashlib.sha256(self._text.encode()).hexdigest()[:16]
        self._settings = settings
        self.records = Records(folder)

    def finished(self) -> tuple[int, dict[str, Array]] | None:
        """How many rounds the federation in the folder has played and its model, if it is finished.

        Raises:
            ConfigError: the folder holds a federation of other settings, finished or not.
        """
        folder = self.records.folder
        if folder is None:
            return None
        known = folder / CONFIG
        if known.exists() and known.read_text(encoding="utf-8") != self._text:
            raise ConfigError(f"{folder}: holds a run of another configuration; choose another out")
        summary = read_summary(folder)
        if summary is None:
            return None
        weights, _ = load_tensors(folder / WEIGHTS)
        return int(summary["rounds"]), {name: value.numpy() for name, value in weights.items()}

    def open(self, resume: bool) -> tuple[int, dict[str, Array], Memory] | None:
        """Start, or with ``resume`` go on: the last saved round, its model and memory."""
        checkpoint = self.records.open(self._text, self.digest, resume)
        if checkpoint is None:
            return None
        arrays = {n.removeprefix("array."): t.numpy() for n, t in checkpoint.tensors.items() if n.startswith("array.")}
        order = self._order(checkpoint.tensors)
        return checkpoint.round, {name: arrays[name] for name in order}, Memory.of(checkpoint.tensors)

    def _order(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """The model's names in its own order; safetensors files sort theirs."""
        try:
            names = bytes(tensors["order"].tolist()).decode().split("\n")
        except (KeyError, UnicodeDecodeError, ValueError):
            raise BezoarError(f"{self.records.folder}: damaged: the checkpoint does not name the arrays") from None
        return names

    def add(self, *records: Mapping[str, Any], seconds: Mapping[str, Any] | None = None) -> None:
        """Append records, and the seconds of a round."""
        self.records.add(records, [] if seconds is None else [seconds])

    def save(self, number: int, arrays: Mapping[str, Array], memory: Memory) -> None:
        """Replace the checkpoint."""
        order = torch.tensor(list("\n".join(arrays).encode()), dtype=torch.uint8)
        self.records.save_checkpoint(number, {**_tensors(arrays), "order": order, **memory.tensors()}, self.digest)

    def finish(self, arrays: Mapping[str, Array], parameters: int) -> None:
        """Write the final model and the summary."""
        last = self.records.evaluations[-1] if self.records.evaluations else {}
        rounds, accuracy = self.records.rounds, last.get("test_accuracy")
        note = "trained" if accuracy is None else f"final test accuracy {accuracy:.1%}"
        skipped = sum(record["skipped"] is not None for record in rounds)
        seconds = {
            phase: sum(entry.get(phase, 0.0) for entry in self.records.timings) / max(1, len(self.records.timings))
            for phase in ("clients", "aggregation", "evaluation")
        }
        self.records.finish(
            {
                "name": self._settings["name"],
                "seed": self._settings["seed"],
                "rounds": len(rounds),
                "parameters": parameters,
                "test_accuracy": accuracy,
                "test_accuracy_clean": accuracy,
                "test_loss": last.get("test_loss"),
                "attack_accuracy": last.get("attack_accuracy"),
                **attacked(rounds),
                "rounds_skipped": skipped,
                "converged": skipped < len(rounds),
                "convergence_note": note + (f", {skipped} rounds skipped" if skipped else ""),
                "seconds": seconds,
                "command": None,
                "versions": {**environment.versions(), **_framework(self._settings)},
                "hardware": environment.hardware(torch.device("cpu")),
                "commit": environment.commit(),
                "hash": self.digest,
            },
            _tensors(arrays, prefix=""),
        )


def _framework(settings: Mapping[str, Any]) -> dict[str, str]:
    """The version of the framework in which the federation ran."""
    package = PACKAGES.get(str(settings.get("kind")))
    return {} if package is None else {package: version(package)}


def _tensors(arrays: Mapping[str, Array], prefix: str = "array.") -> dict[str, Tensor]:
    return {f"{prefix}{name}": torch.from_numpy(value.copy()) for name, value in arrays.items()}


def caught(verdicts: Sequence[Verdict], bad: Collection[int], active: bool, tells: bool) -> dict[str, Any]:
    """What a round's record says of the clients ``bad``, whom the server does not know.

    ``attackers`` is how many of them were asked, ``attacking`` whether they attack in this round (``active``).
    ``detected`` is the share of them that was excluded or flagged among those who sent something, ``false_alarms`` that
    of the others; None where there is nobody, or where the rule does not tell clients apart (``tells``).
    """
    asked = [verdict.client in bad for verdict in verdicts]
    sent = [v for v in verdicts if v.status in (Status.KEPT, Status.FLAGGED, Status.EXCLUDED)]
    shares: list[float | None] = []
    for group in ([v for v in sent if v.client in bad], [v for v in sent if v.client not in bad]):
        flagged = sum(v.status is not Status.KEPT for v in group)
        shares.append(flagged / len(group) if group and tells and bad else None)
    return {
        "attackers": sum(asked),
        "attacking": active and any(asked),
        "detected": shares[0],
        "false_alarms": shares[1],
    }


def round_record(
    number: int, lr: float, cohort: int, verdicts: Sequence[Verdict], figures: Mapping[str, Any], skipped: str | None
) -> dict[str, Any]:
    """One round's record: the figures that runs have, and every client's verdict that is not simply "kept"."""
    return {
        "kind": "round",
        "round": number,
        "lr": lr,
        "attackers": 0,
        "attacking": False,
        "cohort": cohort,
        "clipped": None,
        "aggregate_norm": None,
        "update_norm": None,
        **figures,
        "skipped": skipped,
        "verdicts": {
            str(v.client): v.status.name.lower() + (f": {v.reason}" if v.reason else "") for v in verdicts if v.status
        },
    }


def evaluation_record(number: int, metrics: Mapping[str, Any], source: str) -> dict[str, Any]:
    """One evaluation's record; ``source`` is "server" or "clients"."""
    plain = {key: value for key, value in metrics.items() if isinstance(value, int | float)}

    def first(keys: Sequence[str]) -> float | None:
        return next((float(plain[key]) for key in keys if key in plain), None)

    return {
        "kind": "evaluation",
        "round": number,
        "test_accuracy": first(ACCURACY),
        "test_accuracy_clean": first(ACCURACY),
        "test_loss": first(LOSS),
        "attack_accuracy": first(("attack_accuracy", "attack-accuracy")),
        "per_class_accuracy": [],
        "source": source,
        "metrics": plain,
    }
