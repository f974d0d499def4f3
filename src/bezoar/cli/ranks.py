"""One experiment on the many processes that torchrun has started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezoar.cli.app import command, prepare, read
from bezoar.errors import ConfigError

if TYPE_CHECKING:
    from bezoar.experiments.run import RunResult


def run_on_ranks(
    source: str,
    settings: list[str] | None,
    seed: int | None,
    out: Path | None,
    data_dir: Path | None,
    resume: bool,
    device: str,
    threads: int | None,
    allocator: str,
    quiet: bool,
    as_json: bool,
    timeout: float,
    trackers: Sequence[Any],
    show: Callable[[RunResult, Path], None],
) -> None:
    """Run one experiment on all ranks; rank 0 keeps the records and is the one to ``show`` the result."""
    from bezoar.experiments import Experiment
    from bezoar.experiments import run as run_experiment
    from bezoar.experiments.config import override
    from bezoar.experiments.progress import Display
    from bezoar.ranks.torchrun import device_of, joined

    def described() -> Experiment:
        table, values, name = read(source, settings)
        _check_kind(table, name)
        if seed is not None:
            values["seed"] = seed
        return Experiment.from_table(override(table, values), name)

    device = device_of(device)
    prepare(allocator, threads, device)
    with joined(device, timeout) as ranks:
        experiment = ranks.together(described)
        folder = out or Path("runs") / experiment.name
        with Display(quiet=quiet or not ranks.first, stderr=as_json) as display:
            result = run_experiment(
                experiment,
                folder,
                data_dir=data_dir,
                resume=resume,
                device=device,
                progress=display.start(experiment.name, experiment.rounds) if ranks.first else None,
                command=command(),
                ranks=ranks,
                trackers=trackers,
            )
        if ranks.first:
            show(result, folder)


def _check_kind(table: dict[str, Any], name: str) -> None:
    """Raise unless ``table`` describes one experiment of a federation."""
    kind = "a grid" if "grid" in table else table.get("kind")
    if kind in ("a grid", "personalized", "expected"):
        what = kind if kind == "a grid" else f"of kind {kind!r}"
        raise ConfigError(
            f"{name}: is {what}; torchrun plays one experiment on many processes. Run it without torchrun"
            f"{' (bezoar compare --jobs N)' if kind == 'a grid' else ''}"
        )
