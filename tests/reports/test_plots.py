from __future__ import annotations

import itertools
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bezoar.reports import load, plots
from bezoar.reports._curves import curve
from bezoar.reports._drawing import spread
from bezoar.reports.plots import impact, pareto
from bezoar.reports.records import as_comparison
from bezoar.reports.rows import grid
from bezoar.reports.style import looks
from tests.reports.fakes import two_by_two, write_comparison, write_run


def grid_of(path: Path):
    return grid(as_comparison(load(path)))


def test_importing_reports_imports_no_matplotlib() -> None:
    code = "import sys, bezoar.reports; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pareto_by_brute_force() -> None:
    points = [(5.0, 80.0), (50.0, 79.0), (97.0, 88.0), (5.0, 70.0), (97.0, 88.0), (60.0, 80.0)]
    front = {points[i] for i in pareto(points)}
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] >= p[1]}
    assert front == set(points) - beaten
    assert len(pareto(points)) == len(front)


@pytest.mark.parametrize("values", [[0, 0, 0], [1, 2, 50, 50.5], [99, 100], [3], [], [40, 41, 42, 90, 99, 99]])
def test_spread_keeps_gap_order_and_top(values: list[float]) -> None:
    places = spread(values, 10, -1, 104)
    assert all(b - a >= 10 - 1e-9 for a, b in itertools.pairwise(places))
    assert all(-1 <= place <= 104 for place in places)


def test_looks_are_distinct_and_keep_ink_for_the_baseline() -> None:
    found = looks([f"d{i}" for i in range(35)] + ["none"], "none")
    assert len({(str(look.color), str(look.dashes)) for look in found.values()}) == 36
    assert [name for name, look in found.items() if look.color == found["none"].color] == ["none"]


def test_curve_is_mean_least_and_greatest_over_seeds(tmp_path: Path) -> None:
    row = grid_of(two_by_two(tmp_path)).rows[0]
    found = curve(row, lambda e: e.attack_accuracy)
    assert found is not None
    assert found.rounds == (2, 4, 6, 8, 10)
    assert (found.low[-1], found.mean[-1], found.high[-1]) == pytest.approx((96, 97, 98))


def test_an_unfinished_run_does_not_enter_the_mean_of_finished_ones(tmp_path: Path) -> None:
    cells = [
        ({"defence": "x", "seed": 1}, {"attack_accuracy": 0.4}),
        ({"defence": "x", "seed": 2}, {"attack_accuracy": 0.8, "finished": False}),
    ]
    found = curve(grid_of(write_comparison(tmp_path, ["defence", "seed"], cells)).rows[0], lambda e: e.attack_accuracy)
    assert found is not None
    assert (found.seeds, found.mean[-1]) == (1, pytest.approx(40))


def test_every_figure_is_drawn_as_well_formed_svg(tmp_path: Path) -> None:
    drawn = plots(load(two_by_two(tmp_path)))
    assert [plot.name for plot in drawn] == ["curves", "plane", "impact", "distances", "timing", "per_class"]
    ids: list[str] = []
    for plot in drawn:
        for svg in plot.svgs():
            root = ElementTree.fromstring(svg)
            assert root.attrib["role"] == "img"
            assert any(element.tag == "text" for element in root.iter()), "text stays text"
            ids += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
            used = {element.attrib["href"][1:] for element in root.iter("use")}
            assert used <= set(ids)
    assert len(ids) == len(set(ids)), "ids are unique on the page"


@pytest.mark.parametrize(("impacts", "stated", "drawn"), [
    ((0.1, 0.4), False, False), ((0.1, 0.4), True, True), ((0.2, 0.4), False, True), ((None, 0.4), True, False),
])  # fmt: skip
def test_impact_is_drawn_where_it_says_more_than_attack_accuracy(
    tmp_path: Path, impacts: tuple[float | None, float], stated: bool, drawn: bool
) -> None:
    cells = [
        ({"defence": name, "seed": 1}, {"attack_accuracy": share, "outsized_impact": factor})
        for name, share, factor in zip("xy", (0.2, 0.8), impacts, strict=True)
    ]
    claim = {"of": "Figure 1", "says": "x", "checks": [{"metric": "oif", "above": 0}]}
    head = {"paper": [claim]} if stated else {}
    found = grid_of(write_comparison(tmp_path, ["defence", "seed"], cells, **head))
    assert (impact(found) is not None) == drawn


def test_svg_colours_follow_the_page(tmp_path: Path) -> None:
    svg = plots(load(two_by_two(tmp_path)))[0].svgs()[0]
    assert "var(--s0)" in svg
    assert "var(--ink)" in svg
    assert "#0b5fa5" not in svg


def test_labels_are_text_not_mathematics(tmp_path: Path) -> None:
    cells = [({"defence": name, "seed": 1}, {}) for name in ("$x_1$", "a<b>&", "中文\x07", "x" * 80)]
    svgs = "".join(
        svg for plot in plots(load(write_comparison(tmp_path, ["defence", "seed"], cells))) for svg in plot.svgs()
    )
    assert "$x_1$" in svgs
    assert "a&lt;b&gt;&amp;" in svgs
    assert "\x07" not in svgs
    assert "x" * 21 not in svgs


def test_files_are_the_same_bytes_again(tmp_path: Path) -> None:
    plot = plots(load(two_by_two(tmp_path / "records")))[1]
    bytes_of = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        bytes_of.append([file.read_bytes() for file in plot.write(tmp_path / name)])
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0][0].startswith(b"%PDF")
    assert bytes_of[0][1].startswith(b"\x89PNG")


def test_the_users_matplotlibrc_does_not_matter(tmp_path: Path) -> None:
    import matplotlib as mpl

    plot = plots(load(two_by_two(tmp_path)))[1]
    before = plot.svgs()
    with mpl.rc_context({"axes.facecolor": "pink", "font.size": 20, "svg.fonttype": "path"}):
        assert plot.svgs() == before


def test_nan_and_a_single_unfinished_run_can_be_drawn(tmp_path: Path) -> None:
    nan = float("nan")
    bad = {"test_accuracy_clean": nan, "attack_accuracy": nan, "distance_l2": nan, "per_class_accuracy": [nan, 0.5]}
    for plot in plots(load(write_run(tmp_path / "a", **bad))):
        plot.svgs()
    assert [plot.name for plot in plots(load(write_run(tmp_path / "b", finished=False)))] == ["curves"]


def test_thirty_defences_are_split_over_panels(tmp_path: Path) -> None:
    cells = [({"defence": "none" if i == 0 else f"defence {i}", "seed": 1}, {}) for i in range(30)]
    drawn = plots(load(write_comparison(tmp_path, ["defence", "seed"], cells)))[0]
    assert drawn.name == "curves"
    assert len(drawn.panels) == 5
    svgs = drawn.svgs()
    assert all("none 82" in svg for svg in svgs), "the baseline is in every panel"
    assert sum(any(f">defence {i} 82<" in svg for svg in svgs) for i in range(1, 30)) == 29
