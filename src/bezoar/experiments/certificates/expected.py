"""What the experiment's rule promises under its prior over who is honest, with gradients as a clean run shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bezoar.aggregation import Rule
from bezoar.aggregation.at_quantile import declaring
from bezoar.certify.choose_f import best_f
from bezoar.certify.expected import ExpectedGuarantee, by_count, expected_guarantee
from bezoar.certify.frontier import Frontier, Looks
from bezoar.errors import ConfigError, nearest
from bezoar.experiments.certificates.base import Outcome, Request
from bezoar.experiments.frontiers import clean, grams
from bezoar.experiments.setup import prepare
from bezoar.priors import HonestPrior
from bezoar.reports.style import INK, MUTED, SERIES, Panel, Plot
from bezoar.reports.tables import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

_OPTIONS = {"mu": None, "every": 1, "draws": 2000, "cost": None}


def certify(request: Request) -> Outcome:
    """The expected bound and the probability that nothing is promised, by number of bad clients.

    The experiment is run without its attack; what gradients were at its models gives the (G_S, B_S) of every honest
    set: empirical, and about these models only. Options: ``mu`` (the PL constant of the honest losses, if it is known;
    else squared gradient norms are bounded), ``every`` (rounds between two looks), ``draws`` (honest sets, where there
    are too many), ``cost`` (what is lost where nothing is promised: chooses f).

    Raises:
        ConfigError: no prior, clients that send no gradients, or options out of range.
    """
    options = _options(request.options)
    experiment = clean(request.experiment)
    if request.experiment.prior is None and request.experiment.adversary.prior is None:
        raise ConfigError("the method 'expected' needs to know who may be malicious: give the experiment a [prior]")
    cuda = [request.device] if request.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        setup = prepare(experiment, request.data_dir, request.device)
        prior = setup.prior if setup.prior is not None else setup.source
        assert prior is not None
        rule = setup.experiment.defence.pipeline
        rule.given(prior).check(setup.federation.n)
        request.progress(f"training without attack, {experiment.rounds} rounds")
        looks = grams(setup, experiment.rounds, int(options["every"]))
    look = Looks(looks)
    found = expected_guarantee(rule, prior, look, mu=options["mu"], draws=int(options["draws"]), seed=experiment.seed)
    chosen = None
    if options["cost"] is not None and rule.tolerated is not None and by_count(rule):
        chosen = best_f(
            partial(_declared, rule), prior, float(options["cost"]), look, mu=options["mu"],
            draws=int(options["draws"]), seed=experiment.seed,
        )  # fmt: skip
    everyone = look(np.ones(prior.n or 0, dtype=np.bool_))
    words = tuple(_words(found, rule, prior, options["mu"], chosen is not None))
    tables = [_table(found, options["mu"])]
    record: dict[str, Any] = {
        "method": "expected",
        "reading": found.reading.value,
        "rule": rule.name,
        "clients": prior.n,
        "mu": options["mu"],
        "value": found.value,
        "given": None if math.isnan(found.given) else found.given,
        "half_width": found.half_width,
        "breakdown": found.breakdown,
        "unseen": found.unseen,
        "rows": [
            {"bad": q, "probability": p, "kappa_least": least, "kappa_largest": most, "bound": mean}
            for q, p, least, most, mean in found.rows
        ],
        "frontier": {"variances": everyone.variances.tolist(), "gradients": everyone.gradients.tolist()},
        "words": list(words),
    }
    if chosen is not None:
        tables.append(_chosen_table(chosen.curve, chosen.f, chosen.quantile))
        record |= {"best_f": chosen.f, "quantile_f": chosen.quantile, "f_curve": [list(row) for row in chosen.curve]}
    return Outcome(record, tuple(tables), words, (_plot(everyone, found),))


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    for key in given:
        if key not in _OPTIONS:
            raise ConfigError(f"the method 'expected' has no option {key!r}; {nearest(key, _OPTIONS)}")
    options = {**_OPTIONS, **given}
    for key in ("mu", "cost"):
        value = options[key]
        bad = isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0)
        if value is not None and bad:
            raise ConfigError(f"--option {key}: must be a positive number, got {value!r}")
    for key in ("every", "draws"):
        value = options[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"--option {key}: must be a whole number >= 1, got {value!r}")
    return options


def _declared(rule: Rule, f: int) -> Rule:
    return declaring(rule, f)


def _table(found: ExpectedGuarantee, mu: float | None) -> Table:
    what = "excess loss" if mu is not None else "squared gradient norm"
    columns = (
        Column("bad", "bad clients"),
        Column("p", "probability", "%", 100, 2),
        Column("least", "kappa, least", decimals=3),
        Column("most", "kappa, largest", decimals=3),
        Column("bound", f"bound on the {what}", decimals=4),
    )

    def number(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    rows = tuple((q, p, number(a), number(b), number(m)) for q, p, a, b, m in found.rows if p > 0)
    return Table("expected", "What is promised, by number of bad clients", columns, rows, ("An empty cell: nothing.",))


def _chosen_table(curve: Sequence[tuple[int, float, float, float]], f: int, quantile: int) -> Table:
    columns = (
        Column("f", "f"),
        Column("bound", "expected bound", decimals=4),
        Column("breakdown", "nothing promised", "%", 100, 2),
        Column("total", "bound + cost", decimals=4),
        Column("note", "", numeric=False),
    )
    notes = {quantile: "covers 95 %"}
    notes[f] = f"promises most; {notes[f]}" if f in notes else "promises most"
    rows = tuple((*row, notes.get(row[0], "")) for row in curve)
    return Table("choice-of-f", "The declared f", columns, rows)


def _words(found: ExpectedGuarantee, rule: Rule, prior: HonestPrior, mu: float | None, chose: bool) -> list[str]:
    what = "excess loss L_S - min L_S" if mu is not None else "mean squared gradient norm of L_S"
    words = []
    if found.breakdown >= 1 - 1e-12:
        words.append(f"Vacuous: {rule.name} promises nothing for any honest set of this prior.")
    else:
        about = f" +- {found.half_width:.2g}" if found.half_width else ""
        words.append(
            f"Expected {what} over who is honest (reading R1): at most {found.given:.4g}{about} beside what is left of "
            f"the start, given that {rule.name} promises anything; it promises nothing with probability "
            f"{found.breakdown:.2%}."
        )
    if found.unseen > 1e-9:
        words.append(f"Numbers of bad clients of probability {found.unseen:.2%} were never drawn and are in neither.")
    words.append(
        "It rests on the empirical (G_S, B_S) of the models that a run without attack visited, on full gradients of "
        "all clients, and on steps of at most 1/L without momentum."
    )
    if chose and found.half_width:
        words.append("f was chosen by draws.")
    if not by_count(rule) and prior.n is not None:
        words.append("The constants are those of the prior's own sets: for others nothing is promised.")
    return words


def _plot(everyone: Frontier, found: ExpectedGuarantee) -> Plot:
    caption = (
        "Empirical (G, B) of all clients at the models of a run without attack: variance of the gradients over the "
        "squared norm of their mean. Every line above all points is a pair G^2 + B^2 u that holds."
    )
    return Plot("frontier", "Dissimilarity of the clients", caption, (Panel("", partial(_draw, look=everyone)),), 2.4)


def _draw(figure: FigureBase, look: Frontier) -> None:
    axes = figure.add_axes((0.13, 0.2, 0.83, 0.7))
    axes.plot(look.gradients, look.variances, "o", ms=3, color=SERIES[1], mew=0)
    top = float(look.gradients.max()) or 1.0
    ends = np.array([0.0, top])
    for b, shade in ((0.0, MUTED), (1.0, INK)):
        g = look.squared(b)
        axes.plot(ends, g + b * b * ends, color=shade, lw=0.8)
        axes.annotate(f"B = {b:g}", (top, g + b * b * top), xytext=(-4, 3), textcoords="offset points", ha="right",
                      fontsize=7, color=shade)  # fmt: skip
    axes.set_xlim(0, top * 1.03)
    axes.set_ylim(0, None)
    axes.set_xlabel("squared norm of the mean gradient", labelpad=1)
    axes.set_title("variance of the clients' gradients", color=MUTED)
