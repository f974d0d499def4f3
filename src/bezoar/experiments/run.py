"""Run an experiment from its first round, or from its checkpoint, to its summary."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bezoar.errors import BezoarError, ConfigError, DivergedError, ElsewhereError, SuspectsError
from bezoar.experiments import environment
from bezoar.experiments.config import Experiment
from bezoar.experiments.losses import prior_losses, who_was_bad
from bezoar.experiments.records import CONFIG, WEIGHTS, Records, alone, load_tensors, plain, read_summary
from bezoar.experiments.rounds import Clock, State, evaluate, play
from bezoar.experiments.setup import Setup, prepare
from bezoar.experiments.together import agreed, check_same, share_checkpoint, whole_tensors
from bezoar.models.files import FROZEN, check_unchanged, kept
from bezoar.ranks import ALONE, Ranks
from bezoar.tracking.base import Started, Tracker, flat
from bezoar.tracking.kinds import chosen
from bezoar.tracking.telling import Telling

#: Told after every round (kind "round") and evaluation (kind "evaluation"); records may hold tensors.
Progress = Callable[[Mapping[str, Any]], None]

#: Seconds after which finished rounds are written even if no evaluation is due.
FLUSH_SECONDS = 2.0


class Interrupted(BezoarError):
    """The run was stopped by the user and can be resumed."""


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        summary: as in ``summary.json``.
        rounds: one record a round.
        evaluations: one record an evaluation.
        weights: final parameters and buffers by name; of a model with frozen parameters the trained ones.
        directory: where the run was recorded, None if it stayed in memory.
    """

    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    weights: dict[str, Tensor]
    directory: Path | None

    @property
    def test_accuracy(self) -> float:
        """Final accuracy on the whole test set, in [0, 1]; NaN if the run diverged."""
        value = self.summary["test_accuracy"]
        return math.nan if value is None else float(value)

    @property
    def attack_accuracy(self) -> float | None:
        """Final share of aux points with the attackers' label, None without a targeted attack."""
        value = self.summary["attack_accuracy"]
        return None if value is None else float(value)


def run(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    command: str | None = None,
    wait: bool = False,
    ranks: Ranks = ALONE,
    trackers: Sequence[Tracker | str | Mapping[str, Any]] = (),
) -> RunResult:
    """Run ``experiment`` and record it in the directory ``out`` (None: in memory only).

    Args:
        experiment: what to run.
        out: run directory; must not hold another run.
        data_dir: where data sets lie; defaults to BEZOAR_DATA, else ``./data``.
        resume: go on from the directory's checkpoint (or start, if there is none). A finished run is returned.
        device: ``"cpu"``, ``"cuda"``, ...
        progress: called with every record.
        command: shell command to note in the summary.
        wait: for another process that is running in ``out``.
        ranks: the processes that play this run together; all of them call this, rank 0 keeps the records and is the
            only one to read or write ``out`` and to tell ``progress``. The result is the same on all.
        trackers: follow the run too (:mod:`bezoar.tracking`): names, tables with ``kind``, or objects. They need an
            ``out``. One that fails does not end the run.

    Raises:
        ConfigError: the experiment or a tracker can not run, or ``out`` is taken.
        BusyError: another process is running in ``out``.
        ElsewhereError: another rank failed.
        DataError: data are missing or damaged.
        Interrupted: stopped by Ctrl-C after writing a checkpoint.
        SuspectsError: more clients look hostile than declared, and ``defence.more_than_f`` is "stop".
    """
    folder = None if out is None or not ranks.first else Path(out)
    followers = chosen(trackers)
    if out is None:
        if followers:
            raise ConfigError("trackers write into the run's directory: give one as out")
        return _run(experiment, None, data_dir, resume, device, progress, command, ranks, twin_out=None)
    twin = Path(out) / "twin"
    finished = ranks.on_first(lambda: _finished(folder, experiment.hash()) if resume and folder else None)
    if ranks.said(finished is not None):
        return _everywhere(ranks, finished)
    with contextlib.ExitStack() as inside:
        ranks.on_first(lambda: inside.enter_context(alone(folder, wait)) if folder else None)

        def follow(records: Records, round: int) -> Telling | None:
            return inside.enter_context(_followed(followers, experiment, records, round))

        return _run(experiment, folder, data_dir, resume, device, progress, command, ranks, twin, follow)


def _run(
    experiment: Experiment,
    folder: Path | None,
    data_dir: str | Path | None,
    resume: bool,
    device: str | torch.device,
    progress: Progress | None,
    command: str | None,
    ranks: Ranks,
    twin_out: Path | None,
    follow: Callable[[Records, int], Telling | None] = lambda records, round: None,
) -> RunResult:
    digest = experiment.hash()
    finished = ranks.on_first(lambda: _found(folder, digest) if resume and folder else None)
    if ranks.said(finished is not None):
        return _everywhere(ranks, finished)
    where = torch.device(device)
    records = Records(folder)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        setup = replace(ranks.together(lambda: prepare(experiment, data_dir, where)), ranks=ranks)
        ranks.together(lambda: check_same(setup, digest))
        checkpoint = ranks.on_first(lambda: records.open(experiment.dumps(), digest, resume))
        state = State()
        found = share_checkpoint(setup, checkpoint)
        if found is not None:
            state = _restore(setup, *found)
        telling = ranks.on_first(lambda: follow(records, state.round))
        diverged = _rounds(setup, state, records, digest, progress if ranks.first else None, telling)
    twin = None
    if experiment.evaluation.twin:
        twin = run(
            experiment.without_attack(),
            twin_out,
            data_dir=data_dir,
            resume=resume or twin_out is not None,
            device=device,
            progress=None,
            ranks=ranks,
        )
    weights, metadata = kept(setup.model)
    summary = _summary(experiment, setup, records, digest, diverged, command)
    if twin is not None:
        summary.update(distances(weights, twin.weights))
    summary = plain(summary)
    if telling is not None:
        telling.finish(summary)
        summary["trackers"] = dict(telling.report)
    ranks.on_first(lambda: records.finish(summary, weights, metadata))
    mine = RunResult(summary, records.rounds, records.evaluations, weights, folder)
    return mine if ranks.alone else _everywhere(ranks, mine if ranks.first else None)


@contextlib.contextmanager
def _followed(
    trackers: Mapping[str, Tracker], experiment: Experiment, records: Records, round: int
) -> Iterator[Telling | None]:
    """Trackers of a run that begins after ``round``; they hear of it if it ends before its end."""
    if not trackers:
        yield None
        return
    assert records.folder is not None
    parameters = flat(tomllib.loads(experiment.dumps()))
    started = Started(experiment.name, experiment.hash(), parameters, records.folder, round)
    telling = Telling(trackers, started, [*records.rounds, *records.evaluations, *records.timings])
    try:
        yield telling
    finally:
        # Those that were told the summary are not told again.
        telling.finish(None)


def _everywhere(ranks: Ranks, result: RunResult | None) -> RunResult:
    """Rank 0's ``result`` on all ranks."""
    if ranks.alone:
        assert result is not None
        return result
    known = None if result is None else [result.summary, result.rounds, result.evaluations]
    summary, rounds, evaluations = ranks.said(known)
    shapes = None if result is None else {name: _kind(value) for name, value in result.weights.items()}
    weights = {}
    for name, (dtype, shape) in ranks.said(shapes).items():
        mine = torch.empty(shape, dtype=getattr(torch, dtype)) if result is None else result.weights[name]
        weights[name] = ranks.told(mine)
    return RunResult(summary, rounds, evaluations, weights, None if result is None else result.directory)


def _kind(value: Tensor) -> tuple[str, list[int]]:
    return str(value.dtype).removeprefix("torch."), list(value.shape)


def _found(folder: Path, digest: str) -> RunResult | None:
    """The finished run in ``folder``, if there is one; a ConfigError if it holds another run."""
    finished = _finished(folder, digest)
    if finished is None and (folder / CONFIG).exists() and Experiment.load(folder / CONFIG).hash() != digest:
        raise ConfigError(f"{folder}: holds a run of another configuration; choose another --out")
    return finished


def _finished(folder: Path, digest: str) -> RunResult | None:
    summary = read_summary(folder) if folder.exists() else None
    if summary is None:
        return None
    if summary["hash"] != digest:
        raise ConfigError(f"{folder}: holds a finished run of another configuration; choose another --out")
    check_unchanged(summary.get("model", {}).get("weights", {}))
    records = Records(folder)
    records._reread()
    weights, _ = load_tensors(folder / WEIGHTS)
    return RunResult(summary, records.rounds, records.evaluations, weights, folder)


#: The parts of the state that are mappings of tensors.
_MEMORIES = ("server", "rule", "clients", "last", "attack", "past", "traffic")

#: Marks tensors that stay on the CPU when the run is on another device, such as client ids.
_ON_CPU = "@cpu"


def _restore(setup: Setup, round: int, tensors: dict[str, Tensor]) -> State:
    memories: dict[str, dict[str, Tensor]] = {part: {} for part in _MEMORIES}
    buffers = dict(setup.model.named_buffers())
    with torch.no_grad():
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if name == "weights":
                setup.weights.copy_(value)
            elif name == FROZEN:
                if not torch.equal(value, _frozen(setup)[FROZEN]):
                    raise ConfigError("the frozen part of the model is not the one any more that the checkpoint is of")
            elif kind == "buffer":
                buffers[rest].copy_(value)
            else:
                device = torch.device("cpu") if kind.endswith(_ON_CPU) else setup.device
                memories[kind.removesuffix(_ON_CPU)][rest] = value.to(device)
    return State(round, **memories)


def _tensors(setup: Setup, state: State) -> dict[str, Tensor]:
    tensors = {"weights": setup.weights, **_frozen(setup)}
    for part in _MEMORIES:
        memory: Mapping[str, Tensor] = getattr(state, part)
        for name, value in memory.items():
            mark = _ON_CPU if value.device.type == "cpu" != setup.device.type else ""
            tensors[f"{part}{mark}.{name}"] = value
    return tensors | {f"buffer.{name}": value for name, value in setup.model.named_buffers()}


def _frozen(setup: Setup) -> dict[str, Tensor]:
    """The checksum of the model's frozen part as bytes [32], if it has one: a checkpoint is of no other one."""
    digest = setup.facts.get(FROZEN)
    return {} if digest is None else {FROZEN: torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)}


def _rounds(
    setup: Setup, state: State, records: Records, digest: str, progress: Progress | None, telling: Telling | None
) -> str | None:
    """Play all remaining rounds; returns why the run diverged, None if it did not."""
    experiment = setup.experiment
    metrics: list[Mapping[str, Any]] = []
    timings: list[Mapping[str, Any]] = []
    written = time.monotonic()

    def flush() -> None:
        nonlocal written
        written_down = records.add(metrics, timings)
        if telling is not None:
            telling.log(written_down)
        metrics.clear()
        timings.clear()
        written = time.monotonic()

    def save_checkpoint() -> None:
        tensors = whole_tensors(setup.ranks, _tensors(setup, state), setup)
        records.save_checkpoint(state.round, tensors, digest)

    with _Interrupts() as stop:
        while state.round < experiment.rounds:
            if agreed(setup, state.round, stop.asked):
                flush()
                save_checkpoint()
                again = "; go on with --resume" if records.folder is not None else ""
                if not setup.ranks.first:
                    raise ElsewhereError(f"stopped after round {state.round}")
                raise Interrupted(f"stopped after round {state.round} of {experiment.rounds}{again}")
            try:
                state, record, seconds = play(setup, state)
            except DivergedError as error:
                flush()
                return str(error)
            except SuspectsError:
                flush()
                save_checkpoint()
                raise
            t = state.round
            metrics.append(record)
            if progress:
                progress(record)
            due = t % experiment.evaluation.every == 0 or t == experiment.rounds
            if due:
                clock = Clock(setup.device)
                result = evaluate(setup, t)
                if t == experiment.rounds:
                    result |= prior_losses(setup)
                clock.stop("evaluation")
                seconds |= clock.seconds
                metrics.append(result)
                if progress:
                    progress(result)
            timings.append({"round": t, **seconds})
            save = t % experiment.checkpoint_every == 0
            if due or save or time.monotonic() - written > FLUSH_SECONDS:
                flush()
            if due and not torch.isfinite(setup.weights).all():
                return f"the model became non-finite by round {t}"
            if save and t < experiment.rounds:
                save_checkpoint()
    agreed(setup, state.round, False)
    return None


class _Interrupts:
    """Ctrl-C asks the run to stop after its round; a second one stops at once (and loses the rounds since the
    last checkpoint). Only the main thread may handle signals; elsewhere this does nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None
        self._mine = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


def _summary(
    experiment: Experiment, setup: Setup, records: Records, digest: str, diverged: str | None, command: str | None
) -> dict[str, Any]:
    last: dict[str, Any] = records.evaluations[-1] if records.evaluations and not diverged else {}
    attack_accuracy = last.get("attack_accuracy")
    impact = None
    controlled = setup.attacker_share * len(setup.federation.indices)
    if attack_accuracy is not None and setup.goal is not None and controlled:
        impact = attack_accuracy * len(setup.goal.labels) / controlled
    phases = ("clients", "attack", "aggregation", "server", "evaluation")
    count = max(1, len(records.timings))
    spent = {phase: sum(entry.get(phase, 0.0) for entry in records.timings) for phase in phases}
    classes = len(setup.federation.dataset.classes)
    converged, note = _converged(last, classes, diverged)
    scores = {} if setup.prior is None else {key: last.get(key) for key in ("honest_loss", "expected_loss")}
    who = {**who_was_bad(setup), **scores}
    return {
        "name": experiment.name,
        "seed": experiment.seed,
        "regime": experiment.regime,
        "rounds": len(records.rounds),
        "parameters": setup.weights.numel(),
        **({"model": dict(setup.facts)} if setup.facts else {}),
        "clients": setup.federation.n,
        "malicious": len(setup.malicious),
        **({"honesty": who} if who else {}),
        "test_accuracy": last.get("test_accuracy"),
        "test_accuracy_clean": last.get("test_accuracy_clean"),
        "test_loss": last.get("test_loss"),
        "attack_accuracy": attack_accuracy,
        "outsized_impact": impact,
        "distance_l1": None,
        "distance_l2": None,
        "per_class_accuracy": last.get("per_class_accuracy", []),
        **attacked(records.rounds),
        **_communicated(records.rounds),
        "rounds_skipped": sum(r["skipped"] is not None for r in records.rounds),
        "converged": converged,
        "convergence_note": note,
        "seconds": {**{phase: value / count for phase, value in spent.items()}, "total": sum(spent.values())},
        "command": command,
        "versions": environment.versions(),
        "hardware": environment.hardware(setup.device) | ({} if setup.ranks.alone else {"ranks": setup.ranks.size}),
        "commit": environment.commit(),
        "hash": digest,
    }


def attacked(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """How many attack in a round, on average, and means over the rounds with an attack (over all, if there is none) of
    what was noticed and measured."""
    attacked = [record for record in rounds if record["attacking"]] or rounds

    def mean(key: str) -> float | None:
        known = [record[key] for record in attacked if record.get(key) is not None]
        return sum(known) / len(known) if known else None

    def infinite(key: str) -> int:
        return sum(record.get("variance") is not None and record.get(key) is None for record in attacked)

    present = sum(record["attackers"] for record in rounds if record["attacking"]) / max(1, len(rounds))
    means = {key: mean(key) for key in ("detected", "false_alarms", "variance", "deviation", "floor")}
    # Infinity is null in records; a mean that left it out must say so.
    return {
        "attackers_per_round_mean": present,
        **means,
        **{f"{key}_infinite": infinite(key) for key in ("deviation", "floor")},
    }


def _communicated(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """Bytes that all clients sent and fetched in all rounds, and the mean of one client in one round.

    None where a round does not say, as those from before an upgrade do not.
    """
    found: dict[str, float | int | None] = {}
    # Who is drawn for a round that does not take place sends and fetches nothing.
    parts = sum(record["cohort"] for record in rounds if record.get("bytes_up") != 0)
    for key in ("bytes_up", "bytes_down"):
        spent = [record.get(key) for record in rounds]
        total = None if None in spent else sum(amount for amount in spent if amount is not None)
        found |= {key: total, f"{key}_per_client": total / parts if total is not None and parts else None}
    return found


def _converged(last: Mapping[str, Any], classes: int, diverged: str | None) -> tuple[bool, str]:
    """Whether training got anywhere: finite, and at least twice as good as guessing."""
    if diverged:
        return False, f"did not converge: {diverged}"
    threshold = 2 / classes if classes > 2 else 0.55
    accuracy = last["test_accuracy_clean"]
    if accuracy < threshold:
        return False, f"did not converge: final clean test accuracy {accuracy:.1%} is below {threshold:.0%}"
    return True, f"converged: final clean test accuracy {accuracy:.1%} is at least {threshold:.0%}"


def distances(weights: Mapping[str, Tensor], twin: Mapping[str, Tensor]) -> dict[str, float]:
    """l1 and l2 distance between two models, float64."""
    gap = torch.cat([(weights[name].double() - twin[name].double()).reshape(-1) for name in weights])
    return {"distance_l1": float(gap.abs().sum()), "distance_l2": float(gap.norm())}
