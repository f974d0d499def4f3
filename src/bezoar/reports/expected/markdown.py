"""Parts of a page in Markdown about grids of expected robustness: tables and sentences that follow from records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from bezoar.reports.expected.board import VIEWS, Board, Regime, View, spreads
from bezoar.reports.expected.folder import Records
from bezoar.reports.expected.heat import PANELS, TIGHTNESS
from bezoar.reports.expected.scores import NONE
from bezoar.reports.expected.statistics import digits, median, resolvable
from bezoar.reports.expected.verdict import Finding, Regret, contest, leaders, regrets


def facts(records: Records) -> str:
    """Runs, seeds, time, machine, commit and command in one sentence."""
    seeds = ", ".join(map(str, records.seeds))
    state = counted(records.runs, "run") + (f", {len(records.missing)} not finished" if records.missing else "")
    commits = ", ".join(commit[:12] for commit in records.commits) or "not recorded"
    return (
        f"{state}, seeds {seeds}; {records.seconds:,.0f} s of computing; {'; '.join(records.hardware)}; commit "
        f"{commits}; `{'; '.join(records.commands)}`.\n"
    )


def counts(regimes: Sequence[Regime], view: View, new: Sequence[str], baselines: Sequence[str]) -> dict[str, list[str]]:
    """New rule -> its result in each regime where it met baselines."""
    found = {
        rule: [str(c.result) for r in regimes if (c := contest(rule, baselines, r.over(view))) is not None]
        for rule in new
    }
    return {rule: results for rule, results in found.items() if results}


def results_table(regimes: Sequence[Regime], new: Sequence[str], baselines: Sequence[str]) -> Iterable[str]:
    """Where new rules win, are level, and lose, and to which baselines."""
    yield from few(regimes, len(set(baselines) & {rule for regime in regimes for rule in regime.rules}))
    yield row(["new rule", "over attacks", "wins", "level", "loses", "loses to"])
    yield row(["---", "---", "---:", "---:", "---:", "---"])
    for rule in new:
        for view in VIEWS:
            met = [c for r in regimes if (c := contest(rule, baselines, r.over(view))) is not None]
            if not met:
                continue
            results = [str(c.result) for c in met]
            to: dict[str, int] = {}
            for c in met:
                for other in c.losing_to:
                    to[other] = to.get(other, 0) + 1
            listed = ", ".join(f"{other} ({count})" for other, count in sorted(to.items(), key=lambda item: -item[1]))
            numbers = [str(results.count(word)) for word in ("wins", "level", "loses")]
            yield row([rule if view == "mean" else "", view, *numbers, listed or "–"])
    yield ""


def few(regimes: Sequence[Regime], comparisons: int) -> list[str]:
    """A warning where there are too few seeds for any of so many comparisons to be significant, else nothing."""
    seeds = min((len(regime.seeds) for regime in regimes), default=0)
    if not comparisons or resolvable(seeds, comparisons):
        return []
    return [
        f"**{counted(seeds, 'seed')} can not show a loss**: after the correction for {comparisons} comparisons no "
        "difference is significant at 5%, however great. “Level” says nothing here; read the losses.\n"
    ]


def losses(board: Board, regimes: Sequence[Regime], view: View) -> Iterable[str]:
    """Rules down, regimes of one task across; bold: those that can not be told from the first."""
    columns = []
    for regime in regimes:
        found = leaders(regime, regime.over(view))
        spread = {} if found is None else found.spreads
        first = () if found is None or few([regime], len(found.spreads) - 1) else (found.first, *found.level)
        columns.append({rule: f"**{s.text()}**" if rule in first else s.text() for rule, s in spread.items()})
    what = "Expected loss above the minimum" if board.measure == "excess" else "Expected loss"
    told = any(text.startswith("**") for column in columns for text in column.values())
    bold = "bold: not told apart from the least" if told else "too few seeds to tell rules apart"
    yield f"{what}, {view} over attacks; {bold}.\n"
    yield row(["rule", *(place(board, regime) for regime in regimes)])
    yield row(["---", *(["---:"] * len(regimes))])
    for rule in board.rules:
        yield row([rule, *(column.get(rule, "–") for column in columns)])
    yield ""


def by_attack(board: Board, regimes: Sequence[Regime]) -> Iterable[str]:
    """One table per task: every attack by itself, mean over seeds and over the regimes' skews."""
    attacks = list(dict.fromkeys(attack for regime in regimes for attack in regime.attacks))
    yield (
        "By attack, mean over the regimes above; bold: the least of the column. P(broken): the probability of the "
        "honest sets for which the rule promises nothing; 1 for rules without a constant.\n"
    )
    yield row(["rule", *(attack if attack != NONE else "no attack" for attack in attacks), "P(broken)"])
    yield row(["---", *(["---:"] * (len(attacks) + 1))])
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
        yield row([rule, *cells, digits(broken)])
    yield ""
    quiet = {rule: value for rule, value in values.get(NONE, {}).items() if math.isfinite(value)}
    if quiet and board.measure == "excess":
        least = min(quiet, key=lambda rule: quiet[rule])
        yield (
            f"Without an attack the least is {digits(quiet[least])} ({least}): what training for so few rounds leaves. "
            "It is part of all numbers above, so ratios of losses may understate how far rules are apart.\n"
        )


def place(board: Board, regime: Regime) -> str:
    """The regime's labels apart from its task."""
    return ", ".join(regime.labels[axis] for axis in board.axes if axis != PANELS) or regime.title


def tightness(board: Board) -> Iterable[str]:
    """How much of the bounds is reached, rule by rule; nothing for rules without a constant."""
    known = [(score.ratio, score) for score in board.scores if score.ratio is not None and score.attack != NONE]
    if known:
        ratios = sorted(ratio for ratio, _ in known)
        most, top = max(known, key=lambda pair: pair[0])
        over = sum(ratio > 1 for ratio in ratios)
        yield (
            f"Of {len(ratios)} expectations (rule, attack, regime, seed) with a bound the median reaches "
            f"{digits(100 * median(ratios))}% of it, and the greatest {digits(100 * most)}% ({top.rule} under "
            f"{', '.join([top.attack, *filter(None, top.labels.values())])}, seed {top.seed}). "
            + (f"{over} exceed it: the theorem or its use is wrong.\n" if over else "None exceeds it.\n")
        )
    yield row(["rule", "bound", "measured", "measured / bound", "share of kappa reached", "P(broken), greatest"])
    yield row(["---", *(["---:"] * 5)])
    for rule in board.rules:
        each = [[v for regime in board.regimes for v in regime.greatest(rule, read)] for read in TIGHTNESS.values()]
        shown = [digits(median(values)) if values else "–" for values in each]
        broken = max(score.broken for score in board.scores if score.rule == rule)
        yield row([rule, *shown, digits(broken)])
    yield "\nMedian over regimes and seeds of the greatest over attacks.\n"


def advice(situations: Sequence[tuple[str, Sequence[Regime]]], shown: str) -> Iterable[str]:
    """Least regret in each situation, on average and at most, beside that of the rule ``shown``."""
    yield row(["situation", "over attacks", "on average", "without bad surprise", shown])
    yield row(["---"] * 5)
    for title, regimes in situations:
        for view in VIEWS:
            found = regrets(regimes, lambda regime, view=view: regime.over(view))  # type: ignore[misc]
            if not found:
                continue
            first, safe = best(found)
            own = found.get(shown)
            yield row(
                [
                    title if view == "mean" else "",
                    view,
                    f"{first} (x {digits(found[first].mean)})",
                    f"{safe} (at most x {digits(found[safe].most)})",
                    "–" if own is None else f"x {digits(own.mean)}, at most x {digits(own.most)}",
                ]
            )
    yield ""


def best(found: Mapping[str, Regret]) -> tuple[str, str]:
    """The rule with the least regret on average, and the one with the least at most."""
    return next(iter(found)), min(found, key=lambda rule: found[rule].most)


def default(regimes: Sequence[Regime], shown: str, new: Sequence[str]) -> str:
    """Whether the rule ``shown`` has the least regret of the new ones on the worst attack; empty if it was not run."""
    found = {k: v for k, v in regrets(regimes, lambda regime: regime.over("worst")).items() if k in new}
    if shown not in found:
        return ""
    first, safe = best(found)
    name = shown[0].upper() + shown[1:]
    if shown == first == safe:
        return (
            f"**{name} as the default:** of the new rules it has the least regret on the worst attack where the prior "
            "may be right or wrong, on average and at most.\n"
        )
    own = found[shown]
    others = [
        f"that of {rule} is x {digits(found[rule].mean)} and x {digits(found[rule].most)} ({found[rule].at})"
        for rule in dict.fromkeys(rule for rule in (first, safe) if rule != shown)
    ]
    return (
        f"**{name}, as it is set by default, is not the best choice** where the prior may be right or wrong: on the "
        f"worst attack its regret is x {digits(own.mean)} on average and x {digits(own.most)} at most ({own.at}); "
        f"{'; '.join(others)}.\n"
    )


def hypotheses(findings: Sequence[Finding]) -> Iterable[str]:
    """What came of each."""
    yield row(["hypothesis", "verdict", "regimes"])
    yield row(["---"] * 3)
    for finding in findings:
        yield row([finding.hypothesis.says, f"**{finding.word}**", finding.counts if finding.signs else "–"])
    yield ""


def counted(count: int, noun: str) -> str:
    """As in ``1 run``, ``2 runs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
