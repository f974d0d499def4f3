"""The page as a browser shows it: on a desk, on a phone, in the dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bezoar.reports import write_report
from tests.reports.browser import CHROMIUM, Browser, browser
from tests.reports.fakes import two_by_two, write_comparison, write_run

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path (Debian: apt install chromium)"
)

WIDE_PAPER = 182 / 25.4 * 96  # A4 less the margins of the style sheet, in CSS pixels


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module", params=["comparison", "run", "many"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "run":
        return write_report(write_run(folder / "run", name="a-name-without-any-place-to-break-it-" * 3))
    if request.param == "comparison":
        return write_report(two_by_two(folder / "c", description="see https://example.org/" + "x" * 200))
    cells = [
        ({"defence": f"A defence with a long name, {d}", "attack": f"attack {a}", "seed": 1},
         {"attack_accuracy": 0.03 * d + 0.01 * a, "per_class_accuracy": [0.5] * 62})
        for d in range(10)
        for a in range(3)
    ]  # fmt: skip
    return write_report(write_comparison(folder / "m", ["defence", "attack", "seed"], cells))


@pytest.mark.parametrize("width", [1280, 412, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_asks_for_nothing_and_never_scrolls_sideways(chromium: Browser, page: Path, width: int, scheme: str) -> None:
    chromium.open(page, width, prefers_color_scheme=scheme)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.requests() == [page.resolve().as_uri()]
    assert chromium.complaints() == []
    assert chromium.screenshot().startswith(b"\x89PNG")


def test_tables_scroll_inside_their_own_box(chromium: Browser, page: Path) -> None:
    chromium.open(page, 360)
    boxes = "[...document.querySelectorAll('.scroll')]"
    assert chromium.evaluate(f"{boxes}.every(box => box.getBoundingClientRect().right <= 360)")
    assert chromium.evaluate(f"{boxes}.some(box => box.scrollWidth > box.clientWidth)")


def test_the_dark_page_is_dark_and_its_figures_are_not(chromium: Browser, page: Path) -> None:
    dark = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.panels svg text')).fill"
    chromium.open(page, 1280, prefers_color_scheme="dark")
    assert chromium.evaluate(dark) == "rgb(20, 23, 27)"
    assert min(map(int, chromium.evaluate(ink)[4:-1].split(","))) > 140
    chromium.open(page, 1280, prefers_color_scheme="light")
    assert max(map(int, chromium.evaluate(ink)[4:-1].split(","))) < 115


def test_prints_within_the_width_of_a4(chromium: Browser, page: Path) -> None:
    chromium.open(page, int(WIDE_PAPER))
    chromium.call("Emulation.setEmulatedMedia", media="print")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= WIDE_PAPER + 1
    assert chromium.pdf().startswith(b"%PDF")


def test_reads_without_scripts(chromium: Browser, page: Path) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(page, 1280)
        assert chromium.evaluate("document.querySelectorAll('th[aria-sort]').length") == 0
        assert chromium.evaluate("document.querySelectorAll('tbody tr').length") > 0
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_click_sorts_by_number(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(write_report(two_by_two(tmp_path)), 1280)
    table = "[...document.querySelectorAll('table')].find(t => t.rows[0].cells[0].textContent.trim() === '#')"
    chromium.evaluate(f"{table}.querySelectorAll('th')[5].click()")
    order = f"[...{table}.querySelector('tbody').rows].map(row => row.cells[0].textContent).join()"
    assert chromium.evaluate(order) == "3,4,1,2"
    chromium.evaluate(f"{table}.querySelectorAll('th')[5].click()")
    assert chromium.evaluate(order) == "2,1,4,3"
