"""The examples in README and docs run, in order, each file in a directory and namespace of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")]
PAGES = [*FRONT, *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "api" / "index.md"]

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def examples(page: Path) -> list[tuple[str, str | None]]:
    """Python blocks, each with what it prints if a block of text follows at once."""
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    found = re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [(code, printed or None) for code, printed in found]


def agree(shown: str, real: str, within: float = 0.05) -> bool:
    """Whether two outputs are the same but for numbers, which another processor may round or train otherwise."""
    if NUMBER.sub("0", " ".join(shown.split())) != NUMBER.sub("0", " ".join(real.split())):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(real), strict=True)
    gaps = [(float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs]
    return all(abs(a - b) <= within * max(abs(a), abs(b), 1.0) for a, b in gaps)


def test_outputs_agree_but_for_rounding() -> None:
    assert agree("accuracy 94% of 1,000\n", "accuracy  93% of 1,001")
    assert not agree("accuracy 94%", "accuracy 84%")
    assert not agree("accuracy 94%", "precision 94%")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Names that a page registers are gone after it.
    for attribute in ("_parts", "_names"):
        for registry in (RULES, ATTACKS, TRACKERS):
            monkeypatch.setattr(registry, attribute, dict(getattr(registry, attribute)))
    namespace: dict[str, object] = {"__name__": "example"}
    for number, (block, printed) in enumerate(examples(page)):
        where = f"{page.name}, python block {number + 1}"
        exec(compile(block, where, "exec", dont_inherit=True), namespace)
        real = capsys.readouterr().out
        assert printed is None or agree(printed, real), f"{where} prints\n{real}"


def test_the_start_page_shows_what_the_commands_print(tmp_path: Path) -> None:
    page = ROOT / "docs" / "start.md"
    for block in blocks(page, "toml"):
        name = re.match(r"# (\S+\.toml)\n", block)
        assert name is not None
        (tmp_path / name[1]).write_text(block, encoding="utf-8")
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    for block in blocks(page, "console"):
        command, _, shown = block.partition("\n")
        ran = subprocess.run(
            [sys.executable, "-m", *command.removeprefix("$ ").split()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        real = iter(line for line in (ran.stdout + ran.stderr).splitlines() if line.strip())
        for line in shown.splitlines():
            if line.strip() and line != "...":
                # Times differ; the first number of a line, an accuracy, hardly.
                masked = NUMBER.sub("0", " ".join(line.split()))
                found = next((x for x in real if NUMBER.sub("0", " ".join(x.split())) == masked), None)
                assert found is not None, f"{command} does not print {line!r}:\n{ran.stdout}"
                first = [
                    float(NUMBER.findall(x)[0].replace(",", "")) if NUMBER.findall(x) else 0.0 for x in (line, found)
                ]
                assert abs(first[0] - first[1]) <= 3
    assert (tmp_path / "runs" / "first" / "report" / "report.html").exists()


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
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        # A sentence may begin with the name.
        before = r"^(?: {4}|\$ |`)?" if fenced else r"^(?: {4}|\$ |`)"
        for command, inner in re.findall(before + r"bezoar ([\w-]+)(?: ([\w-]+))?", line):
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
