from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bezoar.reports import load, render, write_report
from bezoar.reports.page import toml_value
from tests.reports.fakes import two_by_two, write_comparison, write_run

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """What a page refers to, and whether its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.scripts = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def assert_self_contained(text: str) -> Page:
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    outside = [r for r in page.references if not r.startswith(("#", "tables/", "figures/", "data:"))]
    assert outside == []
    assert not re.search(r"url\((?!#)|@import|https?://|//cdn", text)
    assert page.scripts == 1
    return page


def test_the_report_of_a_comparison(tmp_path: Path) -> None:
    file = write_report(two_by_two(tmp_path / "records"), tmp_path / "out")
    assert file == tmp_path / "out" / "report.html"
    page = assert_self_contained(file.read_text(encoding="utf-8"))
    assert page.headings == [
        "Test accuracy by defence and attack at the final round, in %",
        "Attack accuracy by defence and attack at the final round, in %",
        "Results at the final round",
        "Mean and worst over attacks",
        "Accuracy over the rounds",
        "What a defence costs and what it buys",
        "Impact of the attack and accuracy of the model",
        "How far the attack moved the model",
        "Where the time of a round goes",
        "Accuracy by class",
        "Settings",
        "Every run by itself",
        "To reproduce this",
        "How each number is defined",
    ]
    for reference in page.references:
        if not reference.startswith("#"):
            assert (tmp_path / "out" / reference).is_file(), reference
    names = {f.name for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert {"comparison.csv", "comparison.tex", "over_attacks.csv", "curves.pdf", "plane.png", "runs.csv"} <= names
    assert not any(name.endswith(".part") for name in names)


def test_what_reproduces_it_is_on_the_page(tmp_path: Path) -> None:
    text = render(load(two_by_two(tmp_path)))
    for fact in ("bezoar compare fakes.toml", "torch 2.0", "threads 2", "abc123", "1,234", "server.momentum = 0.9"):
        assert fact in text


def test_the_default_place_is_beside_the_records(tmp_path: Path) -> None:
    assert write_report(write_run(tmp_path)) == tmp_path / "report" / "report.html"


def test_same_records_same_bytes(tmp_path: Path) -> None:
    records = two_by_two(tmp_path / "records")
    found = []
    for name in ("a", "b"):
        write_report(records, tmp_path / name)
        files = sorted(f for f in (tmp_path / name).rglob("*") if f.is_file())
        found.append([(f.relative_to(tmp_path / name), f.read_bytes()) for f in files])
    assert found[0] == found[1]
    assert str(tmp_path) not in found[0][0][1].decode("latin-1")


def test_a_single_run_and_a_single_seed(tmp_path: Path) -> None:
    page = assert_self_contained(render(load(write_run(tmp_path / "run"))))
    assert "Accuracy over the rounds" in page.headings
    assert "Mean and worst over attacks" not in page.headings
    assert_self_contained(render(load(two_by_two(tmp_path / "one", seeds=[1]))))


def test_missing_and_unfinished_cells_are_listed(tmp_path: Path) -> None:
    cells = [
        ({"defence": "x", "seed": 1}, {}),
        ({"defence": "x", "seed": 2}, None),
        ({"defence": "y", "seed": 1}, {"finished": False}),
    ]
    text = render(load(write_comparison(tmp_path, ["defence", "seed"], cells)))
    assert "defence x, seed 2: no records (<code>cells/01</code>)" in text
    assert "defence y, seed 1: unfinished, last round on record 10 (<code>cells/02</code>)" in text
    assert_self_contained(text)


@pytest.mark.parametrize("finished", [True, False])
def test_a_comparison_of_which_little_exists(tmp_path: Path, finished: bool) -> None:
    cells = [
        ({"defence": "x", "seed": 1}, {"finished": False} if finished else None),
        ({"defence": "y", "seed": 1}, None),
    ]
    assert "there are no results yet" in render(load(write_comparison(tmp_path, ["defence", "seed"], cells)))


EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;$title ${body} \' "'


def test_every_string_of_the_records_is_escaped(tmp_path: Path) -> None:
    strings = {
        "name": EVIL, "convergence_note": EVIL, "command": EVIL, "versions": {EVIL: EVIL}, "hardware": {EVIL: EVIL},
        "commit": EVIL, "hash": EVIL, "settings": f'name = "n"\n[a]\n{__import__("json").dumps(EVIL)} = 1\n',
    }  # fmt: skip
    cells = [
        ({EVIL: EVIL, "attack": EVIL, "seed": 1}, strings),
        ({EVIL: "b", "attack": EVIL, "seed": 1}, {**strings, "settings": "x = '<b>'"}),
        ({EVIL: "c", "attack": EVIL, "seed": 1}, None),
    ]
    head = {"name": EVIL, "description": EVIL, "command": EVIL}
    text = render(load(write_comparison(tmp_path / "c", [EVIL, "attack", "seed"], cells, **head)))
    single = render(load(write_run(tmp_path / "r", **strings)))
    for page in (text, single):
        assert_self_contained(page)
        assert "<img" not in page
        assert "alert(&quot;x&quot;)" in page


def test_thirty_cells(tmp_path: Path) -> None:
    cells = [
        ({"defence": f"d{d}", "attack": f"a{a}", "seed": 1}, {"attack_accuracy": 0.03 * d + 0.01 * a})
        for d in range(6)
        for a in range(5)
    ]
    text = render(load(write_comparison(tmp_path, ["defence", "attack", "seed"], cells)))
    assert_self_contained(text)
    assert len(text) < 3_000_000


def test_many_classes_are_drawn_instead_of_tabulated(tmp_path: Path) -> None:
    text = render(load(write_run(tmp_path, per_class_accuracy=[0.01 * c for c in range(62)])))
    assert "per_class-0-" in text
    assert 'class="heat"' not in text


def test_settings_say_which_axis_explains_a_difference(tmp_path: Path) -> None:
    def settings(defence: str, seed: int) -> str:
        k = 10 if defence == "top" else 0
        return f"seed = {seed}\nrounds = 9\n[server]\nk = {k}\n" + ("x = 1\n" if defence == "a" else "")

    cells = [({"defence": d, "seed": s}, {"settings": settings(d, s)}) for d in ("top", "a", "b") for s in (1, 2)]
    text = render(load(write_comparison(tmp_path, ["defence", "seed"], cells)))
    rows = re.findall(r"<td>(?:<code>([^<]*)</code>)?</td><td>([^<]*)</td><td><code>([^<]*)</code></td>", text)
    assert rows == [
        ("seed", "by seed", "1, 2"),
        ("server.k", "defence top", "10"),
        ("", "defence a, b", "0"),
        ("server.x", "defence a", "1"),
    ]
    assert "rounds = 9" in text


def test_toml_values() -> None:
    values = (True, 3, 0.5, float("inf"), 'a"b', [1, [2]], {"a": 1})
    assert [toml_value(v) for v in values] == ["true", "3", "0.5", "inf", '"a\\"b"', "[1, [2]]", "{a = 1}"]
