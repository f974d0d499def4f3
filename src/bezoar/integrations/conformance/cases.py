"""The cases of the suite: what happens in each, and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message

from bezoar.integrations.conformance import lies
from bezoar.integrations.conformance.stage import Lie, Stage, distance, exact, start
from bezoar.integrations.conformance.trial import Fault, Played, Trial, same, survives, tells

#: A claim moves the model at most this share of the way to the client that makes it.
SHARE = 0.75

#: Rounds in which distances must keep their digits; a rule that sees noise gets some of them right by chance.
DRAWS = 5

#: Moves that differ by more than this many times the longest honest update are not alike.
ALIKE = 0.1

NEAR = "the reply is left out or bounded: the round goes on and the model stays near the honest ones"
BOUNDED = "one claim moves the model at most three quarters of the way to the client that makes it"


@dataclass(frozen=True)
class Case:
    """One question to a strategy.

    Attributes:
        name: for ``--case``.
        summary: what happens.
        right: what a strategy should do.
        play: raises :class:`Fault` if it does something else.
    """

    name: str
    summary: str
    right: str
    play: Callable[[Trial], None]


CASES: dict[str, Case] = {}


def _add(name: str, summary: str, right: str, play: Callable[[Trial], None]) -> None:
    CASES[name] = Case(name, summary, right, play)


def _case(name: str, summary: str, right: str) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    def register(play: Callable[[Trial], None]) -> Callable[[Trial], None]:
        _add(name, summary, right, play)
        return play

    return register


def _lie(name: str, lie: Lie, summary: str, right: str = NEAR) -> None:
    """A case in which f clients tell ``lie``."""
    _add(name, summary, right, lambda trial: survives(trial.play(lie)))


@_case("honest", "all clients are honest", "the model moves, keeps names, shapes and types, and comes near theirs")
def _honest(trial: Trial) -> None:
    played = trial.plain()
    survives(played)
    assert played.arrays is not None
    if distance(played.arrays, played.origin.arrays, played.origin.parameters) == 0:
        raise Fault("does not learn", "the new model is the old one")


_lie("wrong-key", lies.wrong_key, "f replies name an array that the model does not have, in place of one that it has")
_lie("missing-key", lies.missing_key, "f replies lack an array")
_lie("extra-array", lies.extra_array, "f replies have an array too many")
_lie("extra-record", lies.extra_record, "f replies have a second record of arrays")
_lie("no-arrays", lies.no_arrays, "f replies have no arrays at all")
_lie("extra-metric", lies.extra_metric, "f replies have a metric that the others do not have")
_lie("no-metrics", lies.no_metrics, "f replies have no metrics, so they claim no number of samples")
_lie("wrong-shape", lies.wrong_shape, "f replies have an array of another size")
_lie("transposed", lies.transposed, "f replies have an array of the right size and another shape")
_lie("one-number", lies.one_number, "f replies have one number in place of an array, which NumPy would broadcast")
_lie("float64", lies.float64, "f replies have an array in float64 where the model has float32")
_lie("text", lies.text, "f replies have an array of text")
_lie("complex", lies.complex_numbers, "f replies have an array of complex numbers")
_lie("nan", lies.nan, "f replies have one NaN")
_lie("infinity", lies.infinity, "f replies have one infinity")
_lie("overflow", lies.overflow, "f replies have an array of 1e38, whose squares float32 can not hold")
_lie("huge-payload", lies.huge_payload, "f replies have 16 MB in place of an array")
_lie("lying-header", lies.lying_header, "f replies have a header that claims 1e15 numbers, and a few bytes")
_lie("garbage", lies.garbage, "f replies have bytes in place of an array that are no array")
_lie("serialisation", lies.other_serialisation, "f replies say that an array is serialised in another way")
_lie("archive", lies.archive, "f replies have a .npz archive in place of an array")


@_case("pickled", "f replies have a pickled array of objects, which runs code when read", NEAR + "; nothing is run")
def _pickled(trial: Trial) -> None:
    lies.Trap.sprung = False
    try:
        survives(trial.play(lies.pickled))
    finally:
        sprung, lies.Trap.sprung = lies.Trap.sprung, False
        if sprung:
            raise Fault("runs their code", "the strategy unpickled what a client sent")


@_case("large", "f updates against the honest ones, 10,000 times as long", NEAR)
def _large(trial: Trial) -> None:
    survives(trial.play(lies.against(trial.setting, 1e4)))


@_case("against", "f updates against the honest ones, 20 times as long", NEAR)
def _against(trial: Trial) -> None:
    survives(trial.play(lies.against(trial.setting, 20)))


@_case(
    "precision",
    "the same small updates, to a small model and to one 25,000 times as long as they are; all are honest",
    "the model moves alike: distances are those of updates, not of weights, whose float32 digits do not hold them",
)
def _precision(trial: Trial) -> None:
    for draw in range(DRAWS):
        moves = []
        for scale in (1.0, 256.0):
            played = trial.play(origin=exact(trial.setting, scale), draw=draw, after=False)
            survives(played)
            if played.arrays is None:
                return
            old, new = played.origin.arrays, played.arrays
            moves.append({name: new[name].astype(np.float64) - old[name] for name in played.origin.parameters})
        if distance(moves[0], moves[1], moves[0]) > ALIKE * played.longest:
            raise Fault(
                "other choice", "around weights that are long beside the updates the strategy decides otherwise"
            )


def _claims(value: Any) -> Callable[[Trial], None]:
    """One client claims ``value`` samples, and is honest in everything else."""

    def play(trial: Trial) -> None:
        told, before = trial.play(lies.claim(value), liars=1), trial.plain()
        survives(told)
        if told.arrays is None or before.arrays is None:
            return
        liar = before.honest[0]
        way = distance(liar, before.arrays, before.origin.parameters)
        moved = distance(told.arrays, before.arrays, before.origin.parameters)
        if moved > SHARE * way and moved > 1e-3 * before.longest:
            raise Fault("a claim decides", f"the model moves {moved / max(way, 1e-30):.3g} times the way to the liar")

    return play


_add("claim-huge", "one client claims 1e12 samples", BOUNDED, _claims(10**12))
_add("claim-nan", "one client claims NaN samples", BOUNDED, _claims(float("nan")))
_add("claim-infinity", "one client claims infinitely many samples", BOUNDED, _claims(float("inf")))
_add("claim-negative", "one client claims -1e12 samples", BOUNDED, _claims(-(10**12)))
_add("claim-list", "one client claims a list of samples", BOUNDED, _claims([10, 10]))


@_case("claim-cancels", "one client's negative claim cancels those of the others but for 1", BOUNDED)
def _cancels(trial: Trial) -> None:
    others = 10 * (trial.setting.clients - 1)
    _claims(1 - others)(trial)


@_case("claim-zero", "all clients claim no samples", "they count alike, or the old model is kept; no division by zero")
def _zero(trial: Trial) -> None:
    survives(trial.play(lies.claim(0), liars=-1), may_keep=True)


@_case(
    "metrics", "f clients report a loss of 1e30 and are honest in all else", "what is reported stays among honest ones"
)
def _metrics(trial: Trial) -> None:
    _among(trial.play(lies.report(1e30)).metrics or {}, "train-loss", 1.0, 2.0)


@_case("evaluation", "in an evaluation f clients report NaN, and a metric that the others do not have", "no exception")
def _evaluation(trial: Trial) -> None:
    trial.evaluate(lies.bad_evaluation)


@_case("evaluation-lie", "in an evaluation f clients report 1e30", "what is reported stays among the honest ones")
def _evaluation_lie(trial: Trial) -> None:
    _among(trial.evaluate(lies.evaluation_lie), "accuracy", 0.5, 1.0)


def _among(metrics: Any, key: str, least: float, most: float) -> None:
    value = metrics.get(key)
    if value is not None and not least <= float(value) <= most:
        raise Fault("a liar decides", f"{key} is reported as {float(value):.3g}")


_lie("error", lies.raises, "f clients answer with an error", "the round goes on with the others")


@_case("missing", "f clients do not answer", "the round goes on with the others")
def _missing(trial: Trial) -> None:
    survives(trial.play(deliver=lambda stage, replies: replies[trial.setting.f :]))


@_case("duplicate", "f clients answer n times each, against the honest ones", NEAR)
def _duplicate(trial: Trial) -> None:
    def deliver(stage: Stage, replies: list[Message]) -> list[Message]:
        many = trial.setting.clients
        return [r for reply in replies for r in [reply] * (many if stage.number(reply) in stage.liars else 1)]

    survives(trial.play(lies.against(trial.setting, 3), deliver=deliver))


@_case("too-many", "f + 1 replies are malformed", "the old model is kept, or the round goes on with the others")
def _too_many(trial: Trial) -> None:
    survives(trial.play(lies.wrong_key, liars=trial.setting.f + 1), may_keep=True)


@_case("all-bad", "all replies are malformed", "the old model is kept")
def _all_bad(trial: Trial) -> None:
    _kept(trial.play(lies.extra_array, liars=-1))


@_case("no-replies", "nobody answers", "the old model is kept")
def _no_replies(trial: Trial) -> None:
    _kept(trial.play(deliver=lambda stage, replies: []))


def _kept(played: Played) -> None:
    if played.arrays is not None:
        old = played.origin.arrays
        if played.arrays.keys() != old.keys() or any((played.arrays[n] != old[n]).any() for n in old):
            raise Fault("invents a model", "there is a new model, and no usable reply")


@_case(
    "few",
    "four clients answer, one of them against the honest ones, 10,000 times as long",
    "where so few can not outvote f, the old model is kept",
)
def _few(trial: Trial) -> None:
    played = trial.play(
        lies.against(trial.setting, 1e4),
        liars=1,
        deliver=lambda stage, replies: replies[:4],
    )
    survives(played, may_keep=True)


@_case("order", "the same replies arrive in other orders", "the same bits")
def _order(trial: Trial) -> None:
    first = trial.plain()
    for seed in range(4):

        def deliver(stage: Stage, replies: list[Message], seed: int = seed) -> list[Message]:
            order = np.random.default_rng(seed).permutation(len(replies)) if seed else range(len(replies))[::-1]
            return [replies[int(i)] for i in order]

        if not same(first, trial.play(deliver=deliver, after=False)):
            raise Fault("depends on order", "who answers first changes the model, so no run can be repeated")


@_case("repeat", "the same federation again, with other node ids, as in every run", "the same bits")
def _repeat(trial: Trial) -> None:
    if not same(trial.plain(), trial.play(names=1, after=False)):
        raise Fault("other bits", "the same replies give another model")


@_case(
    "key-order",
    "one honest reply has its arrays in another order",
    "arrays are matched by name; the model keeps its own order and values",
)
def _key_order(trial: Trial) -> None:
    told, before = trial.play(lies.backwards, liars=1), trial.plain()
    survives(told)
    assert told.arrays is not None
    if before.arrays is not None:
        off = distance(told.arrays, before.arrays, before.origin.parameters)
        if off > 1e-4 * before.longest:
            raise Fault("other values", "the order of one client's arrays changes the model")
    if list(told.arrays) != list(told.origin.arrays):
        raise Fault("other order", "the model's arrays come in the order of that reply")


@_case("half", "a model in float16", "the new model is in float16")
def _half(trial: Trial) -> None:
    survives(trial.play(origin=start(trial.setting, np.float16)))


@_case(
    "integers", "a model with BatchNorm's buffers, one of them a count; all are honest", "the count stays an integer"
)
def _integers(trial: Trial) -> None:
    survives(trial.play(origin=start(trial.setting, buffers=True)))


@_case(
    "buffers",
    "f clients send BatchNorm a variance of -1e6 and a mean of 1e6",
    "buffers stay among those of honest ones",
)
def _buffers(trial: Trial) -> None:
    played = trial.play(lies.bad_buffers, origin=start(trial.setting, buffers=True))
    if played.arrays is None:
        survives(played)
        return
    for name, old in played.origin.arrays.items():
        if name in played.origin.parameters or old.dtype.kind == "i":
            continue
        rows = np.stack([old, *(model[name] for model in played.honest)])
        low, high = rows.min(0), rows.max(0)
        if not ((played.arrays[name] >= low - 1e-3) & (played.arrays[name] <= high + 1e-3)).all():
            raise Fault("buffers moved", f"{name!r} leaves what honest clients measured")


@_case("unchanged", "replies are read again afterwards", "they still hold what was sent")
def _unchanged(trial: Trial) -> None:
    played = trial.plain()
    after = [
        {f"{k}/{n}": a.data for k, record in m.content.array_records.items() for n, a in record.items()}
        for m in played.replies
    ]
    if after != played.sent:
        raise Fault("replies changed", "a strategy around this one can no longer read them")


@_case(
    "accountable",
    "f replies have one NaN; the operator wants to know whose",
    "the node's id in the log or the metrics, or a `verdicts` of objects with `client` and a `status` that is not 0",
)
def _accountable(trial: Trial) -> None:
    played = trial.play(lies.nan)
    if not tells(played):
        raise Fault("says nothing", "neither log nor metrics nor verdicts tell who sent it")
