"""The documentation site builds without a warning and needs nothing from the network; what it draws is up to date."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import ROOT, load

DOCS = ROOT / "docs"

#: Things that a browser fetches by itself.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"'](?:https?:)?//[^\"']+[\"'][^>]*>", re.I
)


def extension(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    pytest.importorskip("sphinx", reason="the documentation needs the extra 'docs'")
    return importlib.import_module(name)


def test_site_builds_without_warnings_and_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = extension("reference", monkeypatch)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "auto", "-c", "docs"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    built = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), ".", str(site)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")

    pages = {str(page.relative_to(site)): page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    pages = {name: text for name, text in pages.items() if not name.startswith("_downloads")}
    sources = [page for folder in ("docs", "docs/api") for page in (ROOT / folder).glob("*.md")]
    for source in (*sources, ROOT / "results/README.md", ROOT / "benchmarks/README.md", ROOT / "CONTRIBUTING.md"):
        assert str(source.relative_to(ROOT).with_suffix(".html")) in pages
    for name, text in pages.items():
        found = [tag for tag in FETCHED.findall(text) if 'rel="canonical"' not in tag]
        assert not found, f"{name} loads {found[0]}"
        for picture in re.findall(r'<img[^>]*?\bsrc="([^"#?]+)"', text):
            if not picture.startswith("data:"):
                assert (site / name).parent.joinpath(picture).exists(), f"{name}: no {picture}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name
    # Formulas are drawn by the browser, and none was left as it was written.
    assert pages["docs/rules.html"].count("<math ") > 40
    assert "\\frac" not in pages["docs/rules.html"] + pages["docs/api/bezoar.aggregation.html"]
    # Every public name can be found, and nothing private is shown.
    for package in reference.packages():
        text = pages[f"docs/api/{package}.html"]
        for public in reference.public(package):
            assert f'id="{package}.{public}"' in text or re.search(rf">{public}(\(\))?</span>", text), (
                f"{package}.{public} is missing"
            )
        assert not re.search(r'<dt [^>]*id="[\w.]*\._(?!_)', text), f"{package} shows a private name"
    for command_name in ("bezoar run", "bezoar compare", "bezoar priors describe", "--resume"):
        assert command_name in pages["docs/cli.html"]


def test_every_public_package_has_a_page() -> None:
    pytest.importorskip("sphinx", reason="the documentation needs the extra 'docs'")
    wanted = load("docs/make_pages.py").api_pages()
    there = {page: page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("bezoar*.md")}
    assert there == wanted, "run python docs/make_pages.py"


def test_a_new_page_is_on_the_front_page() -> None:
    pytest.importorskip("sphinx", reason="the documentation needs the extra 'docs'")
    front = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^[^\n<]+<(\S+)>$", front, flags=re.M)
    assert len(set(listed)) == len(listed)
    assert front.count("@others") == 1
    path = list(sys.path)
    try:
        found = load("docs/conf.py").others(front)
    finally:
        sys.path[:] = path
    rest = [name for name in found if "/" not in name]
    inside = {name for name in listed if "/" not in name}
    assert inside | set(rest) == {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert not inside & set(rest)


def test_the_house_is_drawn_from_the_sources() -> None:
    house = load("docs/make_house.py")
    level = house.levels(house.imports())
    assert set(level) == set(house.packages()) >= set(house.WAY)
    assert level["updates"] < level["aggregation"] < level["attacks"] < level["experiments"] < level["cli"]
    assert house.PICTURE.read_text(encoding="utf-8") == house.picture(), "run python docs/make_house.py"


def test_a_circle_of_imports_is_named() -> None:
    house = load("docs/make_house.py")
    with pytest.raises(ValueError, match="a -> c -> b -> a"):
        house.levels({"a": {"c"}, "b": {"a"}, "c": {"b"}, "d": set()})
    assert house.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_layout_is_told_once() -> None:
    layouts = [
        re.search(r"^    src/bezoar/data/.*?\n\n", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
        for page in ("CONTRIBUTING.md", "docs/house.md")
    ]
    assert layouts[0] is not None
    assert layouts[1] is not None
    assert layouts[0][0] == layouts[1][0]
    assert layouts[0][0].strip().count("\n") == 9
    for path in re.findall(r"(src/bezoar/\w+/|tests/|docs/|benchmarks/|results/)", layouts[0][0]):
        assert (ROOT / path).is_dir()


@pytest.mark.parametrize("name", ["mathml", "reference"])
def test_examples_of_the_extensions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = doctest.testmod(extension(name, monkeypatch))
    assert result.attempted > 0
    assert result.failed == 0


def test_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    mathml = extension("mathml", monkeypatch)
    from docutils.utils.math import MathError

    assert mathml.pieces(r"a \leftarrow b,\quad \left( c \quad d \right)") == [
        r"a \leftarrow b,",
        r"\left( c \quad d \right)",
    ]
    # An index of an accented letter stands beside it.
    assert "<munder" not in mathml.formula(r"\bar x_S", block=False)
    assert mathml.formula(r"\Big( x \Big)", block=True).count("</mo>") == 2
    with pytest.raises(MathError, match="nonsense"):
        mathml.formula(r"\nonsense{x}", block=False)


def test_docstrings_become_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = extension("reference", monkeypatch)
    lines = [
        "Norm |x|, not ``|y|``.",
        "",
        ".. math:: |z|",
        "",
        "Cost: one",
        "    |pass|.",
        "Peers: none.",
        "",
        "Text|.",
    ]
    reference._docstring(None, "class", "name", None, None, lines)
    assert lines == [
        r"Norm \|x\|, not ``|y|``.",
        "",
        ".. math:: |z|",
        "",
        ":Cost: one",
        r"    \|pass\|.",
        ":Peers: none.",
        "",
        r"Text\|.",
    ]


def test_no_box_of_the_house_leaves_the_picture() -> None:
    house = load("docs/make_house.py")
    corners = [float(x) for x in re.findall(r'<rect x="([-\d.]+)"', house.picture())]
    assert len(corners) == len(house.imports())
    assert min(corners) >= 0
    assert max(corners) + house.BOX <= house.WIDTH
    raised = house.spread(
        {"a": 0, "b": 0, "c": 0, "top": 2}, {"a": set(), "b": set(), "c": set(), "top": {"b", "c"}}, 2
    )
    assert raised == {"a": 0, "b": 1, "c": 0, "top": 2}
