"""Ways to run a cell in which something happens to its worker; workers import them by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bezoar.experiments import Experiment, RunResult, run
from bezoar.experiments.engines import node

#: Workers that import this send files after every record.
node._SEND_SECONDS, node._SEND_SHARE = 0.0, 0


def _note(data_dir: Path, what: str) -> int:
    """Append a line; how many there are of this now."""
    with (data_dir / "notes").open("a+") as file:
        file.write(what + "\n")
        file.flush()
        file.seek(0)
        return file.read().splitlines().count(what)


def noted(data_dir: Path) -> list[str]:
    return (data_dir / "notes").read_text().splitlines()


def killed_once(experiment: Experiment, folder: Path, *, progress: Any, data_dir: Path, **options: Any) -> RunResult:
    """Seed 0 is killed in round 8 of its first try; the directory of data takes notes of where each try begins."""
    return _killed(1, experiment, folder, progress, Path(data_dir), options)


def killed_always(experiment: Experiment, folder: Path, *, progress: Any, data_dir: Path, **options: Any) -> RunResult:
    """Seed 0 is killed in round 8 of every try, with the checkpoint of round 6 behind it but not before."""
    return _killed(10**6, experiment, folder, progress, Path(data_dir), options)


def _killed(
    times: int, experiment: Experiment, folder: Path, progress: Any, data_dir: Path, options: Mapping[str, Any]
) -> RunResult:
    where = "here" if Path(folder).is_relative_to(data_dir) else "elsewhere"
    tries = _note(data_dir, f"begins {experiment.seed} {where}")
    first = True

    def tell(record: Mapping[str, Any]) -> None:
        nonlocal first
        if first:
            _note(data_dir, f"seed {experiment.seed} from {record['round']}")
        first = False
        progress(record)
        if experiment.seed == 0 and tries <= times and record["round"] == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    return run(experiment, folder, progress=tell, **options)
