"""Write docs/expected-results.md from recipes and records: ``python docs/make_expected.py``.

``python docs/make_expected.py keep RUNS ...`` first takes the small form of these runs into results/, each under the
name of its recipe, with its report.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bezoar.experiments.config import read_toml
from bezoar.recipes import find
from bezoar.reports.expected import (
    NONE,
    VIEWS,
    Board,
    Finding,
    Hypothesis,
    Records,
    Regime,
    Spread,
    View,
    contest,
    judge,
    keep,
    leaders,
    load_records,
    regrets,
    spreads,
    write_page,
)
from bezoar.reports.expected.heat import TIGHTNESS as KNOWN
from bezoar.reports.expected.statistics import digits, median

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "expected-results.md"

#: Recipes, and what their grids are for.
VERDICT = "expected-verdict"
WRONG = "expected-verdict-misspecified"
MAJORITY = "expected-verdict-majority"
TIGHTNESS = ("expected-tightness", "expected-tightness-cnn", "expected-tightness-hospitals")
RECIPES = (VERDICT, WRONG, MAJORITY, *TIGHTNESS)

#: Rules that are new here, and those that they have to beat. Labels of the recipes.
NEW = (
    "posterior mean",
    "temporal posterior mean",
    "SIP(geometric median)",
    "SIP(NNM, trimmed mean)",
    "SIP(posterior mean)",
    "SIP(prior mean)",
    "guarded SIP",
    "prior-trimmed mean",
)
BASELINES = (
    "mean",
    "prior mean",
    "trimmed mean, f by quantile",
    "NNM, trimmed mean, f by quantile",
    "ARC, NNM, trimmed mean, f by quantile",
    "geometric median",
    "Bayes mean",
)
GUARDED = "guarded SIP"

#: Axes of the grids.
TASK, SKEW, ASSUMED = "task", "skew", "assumed"
CORRECT = "correct"

_UNLIKE = {SKEW: ("0.3", "1")}
_SOFTMAX = {TASK: ("softmax, digits", "softmax, Fashion-MNIST"), **_UNLIKE}

#: What the first evidence suggested (2 to 4 seeds, smaller tasks), as comparisons that can fail.
HYPOTHESES: Mapping[str, tuple[Hypothesis, ...]] = {
    VERDICT: (
        Hypothesis(
            "wrapper",
            "SIP improves the geometric median: on the worst attack, SIP(geometric median) has the smaller loss.",
            (("SIP(geometric median)", "geometric median"),),
            where=_SOFTMAX,
        ),
        Hypothesis(
            "wrapper",
            "SIP improves NNM and trimmed mean on the worst attack.",
            (("SIP(NNM, trimmed mean)", "NNM, trimmed mean, f by quantile"),),
            where=_SOFTMAX,
        ),
        Hypothesis(
            "best",
            "SIP(geometric median) has the least loss on the worst attack of all rules.",
            tuple(("SIP(geometric median)", other) for other in (*BASELINES, *NEW) if other != "SIP(geometric median)"),
            where=_SOFTMAX,
        ),
        Hypothesis(
            "fragile",
            "The posterior mean alone is fragile under heavy skew: at alpha = 0.3 the geometric median has the "
            "smaller loss on the worst attack.",
            (("geometric median", "posterior mean"),),
            where={**_SOFTMAX, SKEW: ("0.3",)},
        ),
        Hypothesis(
            "fragile",
            "SIP rescues the posterior mean at alpha = 0.3: SIP(posterior mean) has less loss on the worst attack.",
            (("SIP(posterior mean)", "posterior mean"),),
            where={**_SOFTMAX, SKEW: ("0.3",)},
        ),
        Hypothesis(
            "base",
            "The base decides: SIP(geometric median) has at most half the loss of SIP(prior mean) on the worst attack.",
            (("SIP(geometric median)", "SIP(prior mean)"),),
            where=_SOFTMAX,
            by=2.0,
        ),
        Hypothesis(
            "mean",
            "The mean has a hundred times the loss of the geometric median on the worst attack.",
            (("geometric median", "mean"),),
            where=_SOFTMAX,
            by=100.0,
        ),
        *(
            Hypothesis(
                "mean",
                f"Under {attack} the mean is better than the geometric median.",
                (("mean", "geometric median"),),
                under=attack,
                where=_SOFTMAX,
            )
            for attack in ("sign flip", "ALIE", "mimic")
        ),
        Hypothesis(
            "memory",
            "The temporal posterior mean is better than the posterior mean under optimised ALIE.",
            (("temporal posterior mean", "posterior mean"),),
            under="optimised ALIE",
            where=_SOFTMAX,
        ),
    ),
    WRONG: (
        Hypothesis(
            "guarded",
            "Under a wrong prior guarded SIP has at most a tenth of SIP(posterior mean)'s loss on the worst attack.",
            ((GUARDED, "SIP(posterior mean)"),),
            where={ASSUMED: ("wrong groups", "outside the support")},
            by=10.0,
        ),
        Hypothesis(
            "guarded",
            "Under a wrong prior guarded SIP has less loss than SIP(posterior mean) on the worst attack.",
            ((GUARDED, "SIP(posterior mean)"),),
            where={ASSUMED: ("wrong groups", "outside the support")},
        ),
    ),
    MAJORITY: (
        Hypothesis(
            "majority",
            "With 12 of 20 clients bad, SIP has at most a tenth of the loss of every rule that needs a majority.",
            tuple(
                (sip, other)
                for sip in ("SIP(geometric median)", "SIP(posterior mean)")
                for other in ("mean", "geometric median", "trimmed mean, f by quantile")
            ),
            by=10.0,
        ),
    ),
}

HEAD = """# Expected robustness, measured

Who should aggregate when there is a probability over who is honest? This page compares the rules of
[the catalogue](rules.md), old and new, on federations where the honest set S is drawn from a prior and everybody else
attacks. It is written by `python docs/make_expected.py` from the recipes and the records in
[results](../results/README.md); every sentence with a number in it is computed from them.

## What is measured

**Reading R1.** For every honest set S of the prior's support the training is run anew, with all clients outside S
attacking together and knowing everything: data, honest updates, rule and its memory. The loss is L_S(θ) - min L_S, over
the honest clients alone, after the last round, never the best one. A run holds all rules, attacks and sets on the same
data; the *expected* loss weighs the sets by their probability, the *worst* over attacks takes the attack that is worst
in expectation. Both are taken within a seed, so that rules can be compared seed by seed.

**A training that diverged** has an infinite loss. It is not left out: where a seed diverged there is no mean, and the
table says how often.

**Without an attack** is a column of its own and no part of the mean and the worst over attacks.

## Rules of the verdict

They were written before the runs, and text follows from them and from the records alone.

- A rule has the *smaller* loss where the exact two-sided signed-rank test over seeds says so at 5%. What diverged has
  the greatest rank. Claims that something holds in *some* comparison pay for all of them (Holm's correction); claims
  that it holds in *all* need each of them, and no correction.
- A new rule **wins** a regime (task, skew, prior) if its loss is smaller than that of *every* baseline. It **loses** if
  that of *some* baseline is smaller than its own. Else it is **level**.
- The *regret* of a rule in a regime is its mean loss over that of the regime's best rule; over regimes its geometric
  mean, and its greatest value. Infinite where a seed diverged.
- *What to use* is the rule with the least regret (geometric mean) in each situation, and, for who wants no bad
  surprise, the one with the least greatest regret.
- A hypothesis is *confirmed* if it holds, by that test, in each regime that it speaks of; *confirmed in part* if in
  some, and the reverse in none; *mixed* if in some, and the reverse in others; *refuted* if only the reverse does;
  otherwise *not told apart*.

A test over seeds covers the randomness of data, partition and attack, and nothing else: other tasks may differ.
"""


def page(results: Path = RESULTS) -> str:
    """The page as text."""
    found = {name: load_records(results / name) for name in RECIPES if (results / name).is_dir()}
    boards = {name: Board.of(name, records.scores) for name, records in found.items()}
    parts = [HEAD, *_short(boards), *_when(boards)]
    for name, title in (
        (VERDICT, "The right prior"),
        (WRONG, "A wrong prior"),
        (MAJORITY, "More bad clients than good ones"),
    ):
        parts += _verdict(name, title, boards.get(name), found.get(name))
    parts += _hypotheses(boards)
    for name in TIGHTNESS:
        parts += _tightness(name, boards.get(name), found.get(name))
    return "\n".join(parts).rstrip("\n") + "\n"


# In short ------------------------------------------------------------------------------------------------------------


def _short(boards: Mapping[str, Board]) -> Iterable[str]:
    yield "## In short\n"
    if not {VERDICT, WRONG, MAJORITY} & set(boards):
        yield "Not run yet.\n"
        return
    for name, where in (
        (VERDICT, "With the right prior"),
        (WRONG, "With a wrong one"),
        (MAJORITY, "With 12 of 20 bad"),
    ):
        if name not in boards:
            continue
        board = boards[name]
        for view, says in zip(VIEWS, ("on the mean over attacks", "on the worst attack"), strict=True):
            regimes = _regimes(name, board)
            counts = _counts(regimes, view)
            won = [f"{rule} {w}" for rule, (w, _, _) in counts.items() if w]
            lost = [f"{rule} {n}" for rule, (_, _, n) in counts.items() if n]
            yield (
                f"- {where}, {says}, {_count(len(regimes), 'regime')}: new rules that win: "
                f"{', '.join(won) or 'none'}; that lose: {', '.join(lost) or 'none'}."
            )
    yield ""


def _regimes(name: str, board: Board) -> list[Regime]:
    """All regimes of a grid; of the misspecified one, those whose prior is wrong."""
    return [regime for regime in board.regimes if name != WRONG or regime.labels.get(ASSUMED) != CORRECT]


def _counts(regimes: Sequence[Regime], view: View) -> dict[str, tuple[int, int, int]]:
    """New rule -> regimes that it wins, is level in, loses."""
    out = {}
    for rule in NEW:
        met = [c for regime in regimes if (c := contest(rule, BASELINES, regime.over(view))) is not None]
        if met:
            results = [c.result for c in met]
            out[rule] = (results.count("wins"), results.count("level"), results.count("loses"))
    return out


# What to use when ----------------------------------------------------------------------------------------------------


def _situations(boards: Mapping[str, Board]) -> Iterable[tuple[str, list[Regime]]]:
    """Situations that a user can tell apart, and the regimes that are evidence."""
    if VERDICT in boards:
        regimes = list(boards[VERDICT].regimes)
        yield "the prior is right; any skew", regimes
        unlike = [regime for regime in regimes if regime.labels.get(SKEW) in ("0.1", "0.3")]
        yield "the prior is right; clients are very unlike (alpha <= 0.3)", unlike
        yield "the prior is right; clients are alike (alpha >= 1, iid)", [r for r in regimes if r not in unlike]
    if WRONG in boards:
        board = boards[WRONG]
        for case in dict.fromkeys(regime.labels.get(ASSUMED, "") for regime in board.regimes):
            if case != CORRECT:
                yield f"the prior is wrong: {case}", [r for r in board.regimes if r.labels.get(ASSUMED) == case]
        yield "the prior may be right or wrong", list(board.regimes)
    if MAJORITY in boards:
        yield "a group that may turn holds the majority (12 of 20)", list(boards[MAJORITY].regimes)


def _when(boards: Mapping[str, Board]) -> Iterable[str]:
    situations = [(title, regimes) for title, regimes in _situations(boards) if regimes]
    if not situations:
        return
    yield "## What to use when\n"
    yield "Least regret of all rules, and regret of guarded SIP beside it. “x 1.3”: on average 1.3 times the best.\n"
    yield _row(["situation", "over attacks", "on average", "without bad surprise", GUARDED])
    yield _row(["---"] * 5)
    for title, regimes in situations:
        for view in VIEWS:
            found = regrets(regimes, lambda regime, view=view: regime.over(view))  # type: ignore[misc]
            if not found:
                continue
            first = next(iter(found))
            safe = min(found, key=lambda rule: found[rule].most)
            guarded = found.get(GUARDED)
            yield _row(
                [
                    title if view == "mean" else "",
                    view,
                    f"{first} (x {digits(found[first].mean)})",
                    f"{safe} (at most x {digits(found[safe].most)})",
                    "–" if guarded is None else f"x {digits(guarded.mean)}, at most x {digits(guarded.most)}",
                ]
            )
    yield ""
    yield from _default(situations)


def _default(situations: Sequence[tuple[str, list[Regime]]]) -> Iterable[str]:
    """Whether guarded SIP is the best choice of the new rules where nobody knows whether the prior is right."""
    regimes = next((r for title, r in situations if title == "the prior may be right or wrong"), None)
    if regimes is None:
        return
    found = {k: v for k, v in regrets(regimes, lambda regime: regime.over("worst")).items() if k in NEW}
    if GUARDED not in found:
        return
    first = next(iter(found))
    safe = min(found, key=lambda rule: found[rule].most)
    if GUARDED == first == safe:
        yield (
            "**Guarded SIP as the default:** of the new rules it has the least regret on the worst attack where the "
            "prior may be right or wrong, on average and at most.\n"
        )
        return
    better = dict.fromkeys(rule for rule in (first, safe) if rule != GUARDED)
    yield (
        "**Guarded SIP, as it is set by default, is not the best choice** where the prior may be right or wrong: on "
        f"the worst attack its regret is x {digits(found[GUARDED].mean)} on average and "
        f"x {digits(found[GUARDED].most)} at most ({found[GUARDED].at}); "
        + "; ".join(
            f"that of {rule} is x {digits(found[rule].mean)} and x {digits(found[rule].most)} ({found[rule].at})"
            for rule in better
        )
        + ".\n"
    )


# Each grid -----------------------------------------------------------------------------------------------------------


def _verdict(name: str, title: str, board: Board | None, records: Records | None) -> Iterable[str]:
    yield f"## {title}\n"
    yield f"{_described(name)} Recipe `{name}`.\n"
    if board is None or records is None:
        yield "Not run yet.\n"
        return
    yield from _facts(records)
    for view, says in (("worst", "Worst over attacks"), ("mean", "Mean over attacks")):
        yield f"![{says}: rules and regimes](../results/{name}/report/figures/expected_{view}.png)\n"
    yield from _results(name, board)
    tasks = dict.fromkeys(regime.labels.get(TASK, "") for regime in board.regimes)
    for task in tasks:
        regimes = [regime for regime in board.regimes if regime.labels.get(TASK, "") == task]
        if task:
            yield f"### {task}\n"
        for view, says in zip(VIEWS, ("mean over attacks", "worst over attacks"), strict=True):
            yield from _losses(board, regimes, view, says)
        yield from _by_attack(board, regimes)
    yield (
        f"All numbers, with every attack in every regime and paired differences: [page](../results/{name}/report/"
        f"report.html), [losses](../results/{name}/report/tables/losses.csv), [differences](../results/{name}/report/"
        "tables/pairs.csv).\n"
    )


def _described(name: str) -> str:
    return str(read_toml(find(name)).get("description", ""))


def _facts(records: Records) -> Iterable[str]:
    seeds = ", ".join(map(str, records.seeds))
    state = f"{records.runs} runs" + (f", {len(records.missing)} not finished" if records.missing else "")
    yield (
        f"{state}, seeds {seeds}; {records.seconds:,.0f} s of computing; {'; '.join(records.hardware)}; commit "
        f"{', '.join(commit[:12] for commit in records.commits) or 'not recorded'}; `{'; '.join(records.commands)}`.\n"
    )


def _results(name: str, board: Board) -> Iterable[str]:
    """Where new rules win, are level, and lose, and to which baselines."""
    regimes = _regimes(name, board)
    yield _row(["new rule", "over attacks", "wins", "level", "loses", "loses to"])
    yield _row(["---", "---", "---:", "---:", "---:", "---"])
    for rule in NEW:
        for view in VIEWS:
            met = [c for r in regimes if (c := contest(rule, BASELINES, r.over(view))) is not None]
            if not met:
                continue
            results = [c.result for c in met]
            to: dict[str, int] = {}
            for c in met:
                for other in c.losing_to:
                    to[other] = to.get(other, 0) + 1
            listed = ", ".join(f"{other} ({count})" for other, count in sorted(to.items(), key=lambda item: -item[1]))
            numbers = [str(results.count(word)) for word in ("wins", "level", "loses")]
            yield _row([rule if view == "mean" else "", view, *numbers, listed or "–"])
    yield ""


def _losses(board: Board, regimes: Sequence[Regime], view: View, says: str) -> Iterable[str]:
    """Rules down, regimes of one task across; bold: those that can not be told from the first."""
    columns = []
    for regime in regimes:
        found = leaders(regime, regime.over(view))
        spread = {} if found is None else found.spreads
        first = () if found is None else (found.first, *found.level)
        columns.append({rule: f"**{_show(s)}**" if rule in first else _show(s) for rule, s in spread.items()})
    yield f"Expected loss above the minimum, {says}; bold: not told apart from the least.\n"
    yield _row(["rule", *(_place(board, regime) for regime in regimes)])
    yield _row(["---", *(["---:"] * len(regimes))])
    for rule in board.rules:
        yield _row([rule, *(column.get(rule, "–") for column in columns)])
    yield ""


def _by_attack(board: Board, regimes: Sequence[Regime]) -> Iterable[str]:
    """One table per task: every attack by itself, mean over seeds and over the regimes' skews."""
    attacks = list(dict.fromkeys(attack for regime in regimes for attack in regime.attacks))
    yield "By attack, mean over the regimes above; bold: the least of the column.\n"
    yield _row(["rule", *(attack if attack != NONE else "no attack" for attack in attacks), "P(broken)"])
    yield _row(["---", *(["---:"] * (len(attacks) + 1))])
    values = {
        attack: {
            rule: sum(found) / len(found)
            for rule in board.rules
            if (found := [s.typical for r in regimes if (s := spreads(r.under(attack), r.seeds).get(rule))])
        }
        for attack in attacks
    }
    for rule in board.rules:
        cells = []
        for attack in attacks:
            value = values[attack].get(rule)
            best = value is not None and value == min(values[attack].values()) and math.isfinite(value)
            cells.append("–" if value is None else f"**{digits(value)}**" if best else digits(value))
        broken = max((s.broken for r in regimes for a in r.attacks for s in r.cell(rule, a).values()), default=math.nan)
        yield _row([rule, *cells, digits(broken)])
    yield ""


def _place(board: Board, regime: Regime) -> str:
    return ", ".join(regime.labels[axis] for axis in board.axes if axis != TASK) or regime.title


def _show(spread: Spread) -> str:
    return spread.text()


# Hypotheses ----------------------------------------------------------------------------------------------------------


def _hypotheses(boards: Mapping[str, Board]) -> Iterable[str]:
    yield "## What the first evidence suggested\n"
    yield "From runs with 2 to 4 seeds on smaller tasks; taken as hypotheses.\n"
    yield _row(["hypothesis", "verdict", "regimes"])
    yield _row(["---"] * 3)
    for name, stated in HYPOTHESES.items():
        for hypothesis in stated:
            finding = judge(hypothesis, boards[name]) if name in boards else Finding(hypothesis, ())
            counts = finding.counts if finding.signs else "–"
            yield _row([hypothesis.says, f"**{finding.word}**", counts])
    yield ""


# Tightness -----------------------------------------------------------------------------------------------------------


def _tightness(name: str, board: Board | None, records: Records | None) -> Iterable[str]:
    table: dict[str, Any] = read_toml(find(name))
    yield f"## How tight are the bounds? {table.get('title', '')}".rstrip() + "\n"
    yield f"{table.get('description', '')} Recipe `{name}`.\n"
    if board is None or records is None:
        yield "Not run yet.\n"
        return
    yield from _facts(records)
    known = [score for score in board.scores if score.ratio is not None and score.attack != NONE]
    figures = sorted(path.name for path in (RESULTS / name / "report" / "figures").glob("tightness_*.png"))
    for figure in figures or ["expected_worst.png"]:
        yield f"![{figure.removesuffix('.png')}](../results/{name}/report/figures/{figure})\n"
    if known:
        ratios = sorted(score.ratio for score in known if score.ratio is not None)
        top = max(known, key=lambda score: score.ratio or 0.0)
        over = sum(ratio > 1 for ratio in ratios)
        yield (
            f"Of {len(ratios)} expectations (rule, attack, regime, seed) with a bound, the median reaches "
            f"{digits(100 * ratios[len(ratios) // 2])}% of it, and the greatest {digits(100 * top.ratio)}% "  # type: ignore[operator]
            f"({top.rule} under {top.attack}, {', '.join(top.labels.values())}); {over} exceed it"
            f"{'' if over else ', so no bound is violated'}.\n"
        )
    yield _row(["rule", "bound", "measured", "measured / bound", "share of kappa reached", "P(broken), greatest"])
    yield _row(["---", *(["---:"] * 5)])
    for rule in board.rules:
        each = [[v for regime in board.regimes for v in regime.greatest(rule, read)] for read in KNOWN.values()]
        shown = [digits(median(values)) if values else "–" for values in each]
        broken = max(score.broken for score in board.scores if score.rule == rule)
        yield _row([rule, *shown, digits(broken)])
    yield "\nMedian over regimes and seeds of the greatest over attacks.\n"
    if not known:
        yield from _by_attack(board, board.regimes)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def take(runs: Path, results: Path = RESULTS) -> Path:
    """Keep the small form of finished runs, and their report, under the name of their recipe."""
    records = load_records(runs)
    if records.name not in RECIPES:
        raise SystemExit(f"{runs}: {records.name!r} is none of {', '.join(RECIPES)}")
    folder = results / records.name
    folder.mkdir(parents=True, exist_ok=True)
    keep(records, folder)
    write_page(folder)
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        for argument in sys.argv[2:]:
            print(take(Path(argument)))
    PAGE.write_text(page(), encoding="utf-8")
