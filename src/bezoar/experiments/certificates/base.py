"""What every kind of certificate is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bezoar.experiments.config import Experiment
from bezoar.reports import Plot, Table


@dataclass(frozen=True)
class Request:
    """What shall be certified, and how much may be computed for it.

    Attributes:
        experiment: what runs, attack included.
        data_dir: where data sets lie.
        device: where it is computed.
        ks: values of SparseFed's k to compare (counts or shares such as "1%"); empty: the experiment's own.
        c: the coordinate-Lipschitz constant, if it is known; None: proved for softmax regression, else estimated.
        measure: whether the experiment and its clean twin are run and measured.
        attacks: how many further attacks are tried, to come as near to the bound as possible.
        progress: told in words what is being done.
        options: the method's own options by name, for methods that train many models.
        folder: where such methods keep the models' votes, so that they can go on after a stop; None: nowhere.
        jobs: how many models they train at a time.
    """

    experiment: Experiment
    data_dir: str | Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ks: tuple[int | str, ...] = ()
    c: float | None = None
    measure: bool = True
    attacks: int = 0
    progress: Callable[[str], None] = lambda text: None
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    jobs: int = 1


@dataclass(frozen=True)
class Outcome:
    """A certificate: figures for the record, what is printed, and what is drawn.

    Attributes:
        record: ready for JSON but for infinities, which are written as null.
        tables: the table of the command line, then others.
        words: sentences, one a line: what the certificate is worth, and what it rests on.
        plots: figures, written beside the record.
        rounds: figures of every round, for a file of their own.
    """

    record: dict[str, Any]
    tables: tuple[Table, ...]
    words: tuple[str, ...]
    plots: tuple[Plot, ...] = ()
    rounds: tuple[Mapping[str, Any], ...] = ()
