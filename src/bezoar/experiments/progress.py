"""Progress on the terminal: a live bar, or plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bezoar.experiments.run import Progress as Callback


class Display:
    """A bar with rounds per second, test and attack accuracy; plain lines when the output is no terminal."""

    def __init__(self, *, quiet: bool = False, stderr: bool = False, cells: int = 1) -> None:
        self._console = Console(stderr=stderr, quiet=quiet, highlight=False)
        self._live = self._console.is_terminal and not quiet
        self._cells = cells
        self._done = 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._all: TaskID | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
            if self._cells > 1:
                self._all = self._bars.add_task("cells", total=self._cells, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def start(self, title: str, rounds: int, unit: str = "rounds") -> Callback:
        """A new run begins; the answer takes its records."""
        if self._live:
            self._tasks[title] = self._bars.add_task(title, total=rounds, note="")
        else:
            self._console.print(f"{title}: {rounds} {unit}", markup=False, soft_wrap=True)
        return _Watch(self, title, rounds, unit)

    def finished(self, title: str, ending: str) -> None:
        """A cell has ended."""
        self._done += 1
        if self._live:
            if self._all is not None:
                self._bars.update(self._all, completed=self._done)
            if title in self._tasks:
                self._bars.remove_task(self._tasks.pop(title))
            self._bars.console.print(f"{title}: {ending}", markup=False)
        else:
            self._console.print(f"[{self._done}/{self._cells}] {title}: {ending}", markup=False, soft_wrap=True)

    def show(self, title: str, round: int, rounds: int, note: str, evaluated: bool) -> None:
        """One round or evaluation of the current run."""
        if self._live:
            # News of a parallel cell may come after its end.
            if title in self._tasks:
                self._bars.update(self._tasks[title], completed=round, note=note)
        elif evaluated:
            where = f"{title}, " if self._cells > 1 else ""
            self._console.print(f"  {where}round {round}/{rounds}  {note}", markup=False, soft_wrap=True)


class _Watch:
    def __init__(self, display: Display, title: str, rounds: int, unit: str) -> None:
        self._display, self._title, self._rounds, self._unit = display, title, rounds, unit
        self._accuracy = ""
        self._first: tuple[float, int] | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        now, round = time.monotonic(), int(record["round"])
        evaluated = record["kind"] == "evaluation"
        if self._first is None:
            self._first = now, round
        elapsed = now - self._first[0]
        speed = f"{(round - self._first[1]) / elapsed:5.1f} {self._unit}/s" if elapsed > 0 else ""
        if evaluated:
            attack = record["attack_accuracy"]
            shown = "" if attack is None else f"  attack {attack:6.1%}"
            self._accuracy = f"test {record['test_accuracy']:6.1%}{shown}"
        note = "  ".join(part for part in (self._accuracy, speed) if part)
        self._display.show(self._title, round, self._rounds, note, evaluated)
