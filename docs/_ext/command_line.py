"""The directive ``{commands}``: every command of bezoar, as ``--help`` has it when the site is built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Commands(SphinxDirective):
    """Every command with its arguments and options, as ``--help`` has them."""

    def run(self) -> list[nodes.Node]:
        """Nodes of the page."""
        import typer.main

        from bezoar.cli import app

        lines = [
            line for path, command in _commands("bezoar", typer.main.get_command(app)) for line in _about(path, command)
        ]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name in sorted(children):
        if not children[name].hidden:
            yield from _commands(f"{path} {name}", children[name])


def _about(path: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    words = [(p.metavar or p.name.upper()) if p.required else f"[{p.metavar or p.name.upper()}]" for p in arguments]
    yield from (f"## {path}", "", inspect.cleandoc(command.help or ""), "")
    yield from ("```text", " ".join([path, *words, *(["[OPTIONS]"] if options else [])]), "```", "")
    if arguments or options:
        yield from ("| | |", "|---|---|")
    for word, argument in zip(words, arguments, strict=True):
        yield f"| `{word.strip('[]')}` | {_cell(argument.help)} |"
    for option in options:
        value = "" if option.is_flag else f" {option.metavar or option.type.name.removesuffix(' range').upper()}"
        names = ", ".join(f"`{name}`" for name in [*option.opts[:-1], option.opts[-1] + value])
        default = option.default
        shown = (
            "" if default in (None, False, (), []) or callable(default) or option.is_flag else f" Default: `{default}`."
        )
        yield f"| {names} | {_cell(option.help)}{shown} |"
    yield ""


def _cell(text: str | None) -> str:
    words = re.sub(r"\s+", " ", text or "").replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"(?<!\S)(--[\w-]+)", r"`\1`", words)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
