"""The examples in README and docs run, in order, each file in a directory and namespace of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomlkit

from bezoar.aggregation import RULES
from bezoar.attacks import ATTACKS
from bezoar.cli import app
from bezoar.experiments.defence import defence
from bezoar.tracking import TRACKERS
from tests.scripts import load

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Names that a page registers are gone after it.
    for attribute in ("_parts", "_names"):
        for registry in (RULES, ATTACKS, TRACKERS):
            monkeypatch.setattr(registry, attribute, dict(getattr(registry, attribute)))
    namespace: dict[str, object] = {"__name__": "example"}
    for number, block in enumerate(blocks(page, "python")):
        code = compile(block, f"{page.name}, python block {number + 1}", "exec", dont_inherit=True)
        exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_examples_are_valid(page: Path) -> None:
    for block in blocks(page, "toml"):
        table = tomlkit.parse(block).unwrap()
        if "defence" in table:
            defence(table["defence"])
        for choice in table.get("grid", {}).get("defence", []):
            defence({key: value for key, value in choice.items() if key != "label"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    import typer.main

    group = typer.main.get_command(app)
    for line in page.read_text(encoding="utf-8").splitlines():
        for command, inner in re.findall(r"^(?: {4}|\$ |`)?bezoar ([\w-]+)(?: ([\w-]+))?", line):
            known = group.commands[command]  # type: ignore[attr-defined]
            known = getattr(known, "commands", {}).get(inner, known)
            options = {option for parameter in known.params for option in parameter.opts}
            for option in re.findall(r"(--[a-z-]+)", line):
                assert option in options, f"{page.name}: bezoar {command} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target} does not exist"


def test_generated_pages_are_what_the_docstrings_say() -> None:
    module = load("docs/make_pages.py")
    for path, page in module.PAGES.items():
        assert path.read_text(encoding="utf-8") == page(), f"{path.name}: run python docs/make_pages.py"
