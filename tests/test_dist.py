"""What is published: the wheel, its metadata, the README as an index shows it, and how to cite the library."""

from __future__ import annotations

import doctest
import email
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from bezoar import __version__
from tests.scripts import ROOT, load

#: Top-level keys of the Citation File Format 1.2.0; the first four must be there.
CFF = (
    *("cff-version", "message", "title", "authors"),
    *("abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url"),
    *(
        "preferred-citation",
        "references",
        "repository",
        "repository-artifact",
        "repository-code",
        "type",
        "url",
        "version",
    ),
)


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="builds need hatchling")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    made = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"bezoar-{__version__}-py3-none-any.whl"
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"bezoar-{__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        archive.extractall(tmp_path / "installed")
    package = ROOT / "src" / "bezoar"
    expected = {str(p.relative_to(package.parent)) for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {name for name in names if not name.startswith(info)} == expected
    assert {"bezoar/py.typed", "bezoar/reports/template.html", "bezoar/recipes/quickstart.toml"} <= names
    assert f"{info}/licenses/LICENSE" in names
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    text = str(metadata.get_payload())
    assert text.startswith("# bezoar")
    assert "](docs/" not in text
    assert "](results/" not in text

    # From the wheel alone: version, a recipe, the command line.
    code = (
        "import bezoar, sys; from bezoar.recipes import recipes; from bezoar.cli import main; "
        "print(bezoar.__file__, bezoar.__version__, 'quickstart' in recipes()); "
        "sys.argv = ['bezoar', '--version']; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    used = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert used.returncode == 0, used.stderr
    assert used.stdout.splitlines() == [
        f"{tmp_path}/installed/bezoar/__init__.py {__version__} True",
        f"bezoar {__version__}",
    ]


def test_version_is_written_once() -> None:
    for name in ("pyproject.toml", "CITATION.cff", "docs/conf.py"):
        assert __version__ not in (ROOT / name).read_text(encoding="utf-8"), name


def test_readme_of_an_index() -> None:
    hatchling = pytest.importorskip("hatchling", reason="builds need hatchling")
    assert hatchling is not None
    hook = load("hatch_build.py")
    assert doctest.testmod(hook).failed == 0
    text = hook.readme((ROOT / "README.md").read_text(encoding="utf-8"), None)
    # What is left leads somewhere from anywhere.
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert re.match(r"https?://|#", target), target
    assert "```python" in text
    assert "![" not in text


def test_citation_is_of_the_format() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert list(CFF[:4]) == [key for key in CFF[:4] if key in citation]
    assert set(citation) <= set(CFF)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert citation["authors"] == [{"name": "The bezoar authors"}]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'license = "{citation["license"]}"' in project
    assert f'name = "{citation["title"]}"' in project


def test_templates_say_what_they_are_for() -> None:
    for page in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        _, front, body = page.read_text(encoding="utf-8").split("---\n", 2)
        assert set(yaml.safe_load(front)) == {"name", "about", "labels"}
        assert body.strip()
    assert "make test" in (ROOT / ".github" / "pull_request_template.md").read_text(encoding="utf-8")
