"""Write docs/expected-results.md from recipes and records: ``python docs/make_expected.py``.

``python docs/make_expected.py keep RUNS ...`` first takes the small form of these runs into results/, each under the
name of its recipe, with its report.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from bezoar.experiments.config import read_toml
from bezoar.recipes import find
from bezoar.reports.expected import (
    VIEWS,
    Board,
    Finding,
    Hypothesis,
    Records,
    Regime,
    judge,
    keep,
    load_records,
    markdown,
    write_page,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "expected-results.md"

#: Recipes, and what their grids are for.
VERDICT = "expected-verdict"
WRONG = "expected-verdict-misspecified"
MAJORITY = "expected-verdict-majority"
GUARD = "expected-guard"
TIGHTNESS = {
    "expected-tightness": "How tight are the bounds?",
    "expected-tightness-cnn": "Without constants: a network",
    "expected-tightness-hospitals": "Without intent: wards of four hospitals",
    "expected-tightness-four-hospitals": "Without intent: the four hospitals themselves",
}
RECIPES = (VERDICT, WRONG, MAJORITY, GUARD, *TIGHTNESS)

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
EITHER = "the prior may be right or wrong"

#: Where the grid of the right prior differs from that of wrong ones in nothing but the prior.
SAME = ("Digits", "0.3")

_SOFTMAX = {TASK: ("Digits", "Fashion-MNIST"), SKEW: ("0.1", "0.3")}

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
            where={ASSUMED: ("wrong groups", "outside of the support")},
            by=10.0,
        ),
        Hypothesis(
            "guarded",
            "Under a wrong prior guarded SIP has less loss than SIP(posterior mean) on the worst attack.",
            ((GUARDED, "SIP(posterior mean)"),),
            where={ASSUMED: ("wrong groups", "outside of the support")},
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
        (GUARD, "What guarded SIP falls back on"),
    ):
        parts += _verdict(name, title, boards.get(name), found.get(name))
    parts += _hypotheses(boards)
    for name, title in TIGHTNESS.items():
        parts += _tightness(name, title, boards.get(name), found.get(name), results)
    return "\n".join(parts).rstrip("\n") + "\n"


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
        regimes = _regimes(name, boards[name])
        for view, says in zip(VIEWS, ("on the mean over attacks", "on the worst attack"), strict=True):
            found = markdown.counts(regimes, view, NEW, BASELINES)
            won, lost = (
                ", ".join(f"{rule} {results.count(word)}" for rule, results in found.items() if word in results)
                for word in ("wins", "loses")
            )
            if not lost and markdown.few(regimes, len(BASELINES)):
                lost = "too few seeds to say"
            yield (
                f"- {where}, {says}, {markdown.counted(len(regimes), 'regime')}: new rules that win: {won or 'none'}; "
                f"that lose: {lost or 'none'}."
            )
    yield ""


def _regimes(name: str, board: Board) -> list[Regime]:
    """All regimes of a grid; of the misspecified one, those whose prior is wrong."""
    return [regime for regime in board.regimes if name != WRONG or regime.labels.get(ASSUMED) != CORRECT]


def _situations(boards: Mapping[str, Board]) -> Iterable[tuple[str, list[Regime]]]:
    """Situations that a user can tell apart, and the regimes that are evidence."""
    if VERDICT in boards:
        regimes = list(boards[VERDICT].regimes)
        yield "the prior is right; any skew", regimes
        alike = [regime for regime in regimes if regime.labels.get(SKEW) == "iid"]
        yield "the prior is right; clients are unlike", [r for r in regimes if r not in alike]
        yield "the prior is right; clients are alike (iid)", alike
    if WRONG in boards:
        regimes = list(boards[WRONG].regimes)
        for case in dict.fromkeys(regime.labels.get(ASSUMED, "") for regime in regimes):
            if case != CORRECT:
                yield f"the prior is wrong: {case}", [r for r in regimes if r.labels.get(ASSUMED) == case]
        right = [
            regime
            for regime in (boards[VERDICT].regimes if VERDICT in boards else ())
            if (regime.labels.get(TASK), regime.labels.get(SKEW)) == SAME
        ]
        yield EITHER, [*right, *(regime for regime in regimes if regime.labels.get(ASSUMED) != CORRECT)]
    if MAJORITY in boards:
        yield "a group that may turn holds the majority (12 of 20)", list(boards[MAJORITY].regimes)


def _when(boards: Mapping[str, Board]) -> Iterable[str]:
    situations = [(title, regimes) for title, regimes in _situations(boards) if regimes]
    if not situations:
        return
    yield "## What to use when\n"
    yield "Least regret of all rules, and regret of guarded SIP beside it. “x 1.3”: 1.3 times the loss of the best.\n"
    yield (
        "“Guarded SIP” in these runs falls back on its own base, as it was first proposed. Its default now falls back "
        f"on the geometric median: recipe `{GUARD}`, below, says why.\n"
    )
    yield from markdown.advice(situations, GUARDED)
    yield markdown.default(dict(situations).get(EITHER, []), GUARDED, NEW)


def _verdict(name: str, title: str, board: Board | None, records: Records | None) -> Iterable[str]:
    yield f"## {title}\n"
    yield f"{read_toml(find(name))['description']} Recipe `{name}`.\n"
    if board is None or records is None:
        yield "Not run yet.\n"
        return
    yield markdown.facts(records)
    report = f"../results/{name}/report"
    for view, says in (("worst", "Worst over attacks"), ("mean", "Mean over attacks")):
        yield f"![{says}: rules and regimes]({report}/figures/expected_{view}.png)\n"
    new = [rule for rule in board.rules if rule not in BASELINES]
    yield from markdown.results_table(_regimes(name, board), new, BASELINES)
    for task in dict.fromkeys(regime.labels.get(TASK, "") for regime in board.regimes):
        regimes = [regime for regime in board.regimes if regime.labels.get(TASK, "") == task]
        yield f"### {task}\n" if task else ""
        for each in VIEWS:
            yield from markdown.losses(board, regimes, each)
        yield from markdown.by_attack(board, regimes)
    yield (
        f"All numbers, with every attack in every regime and paired differences: [losses]({report}/tables/losses.csv), "
        f"[differences]({report}/tables/pairs.csv); `bezoar report results/{name}` makes the whole page.\n"
    )


def _hypotheses(boards: Mapping[str, Board]) -> Iterable[str]:
    yield "## What the first evidence suggested\n"
    yield "From runs with 2 to 4 seeds on smaller tasks; taken as hypotheses.\n"
    yield from markdown.hypotheses(
        [
            judge(hypothesis, boards[name]) if name in boards else Finding(hypothesis, ())
            for name, stated in HYPOTHESES.items()
            for hypothesis in stated
        ]
    )


def _tightness(name: str, title: str, board: Board | None, records: Records | None, results: Path) -> Iterable[str]:
    yield f"## {title}\n"
    yield f"{read_toml(find(name))['description']} Recipe `{name}`.\n"
    if board is None or records is None:
        yield "Not run yet.\n"
        return
    yield markdown.facts(records)
    figures = sorted(path.stem for path in (results / name / "report" / "figures").glob("tightness_*.png"))
    for figure in figures or ["expected_worst"]:
        yield f"![{figure}](../results/{name}/report/figures/{figure}.png)\n"
    yield from markdown.tightness(board)
    if board.measure != "excess":
        yield from markdown.by_attack(board, board.regimes)


def take(runs: Path, results: Path = RESULTS) -> Path:
    """Keep the small form of finished runs, and of their report what the page shows, under the name of their recipe."""
    records = load_records(runs)
    if records.name not in RECIPES:
        raise SystemExit(f"{runs}: {records.name!r} is none of {', '.join(RECIPES)}")
    folder = results / records.name
    folder.mkdir(parents=True, exist_ok=True)
    keep(records, folder)
    write_page(folder)
    shown = "tightness" if records.name in TIGHTNESS else "expected"
    for path in (folder / "report").rglob("*"):
        kept = path.suffix == ".csv" or (path.suffix == ".png" and path.name.startswith(shown))
        if path.is_file() and not kept:
            path.unlink()
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        for argument in sys.argv[2:]:
            print(take(Path(argument)))
    PAGE.write_text(page(), encoding="utf-8")
