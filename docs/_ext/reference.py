"""The directive ``{package} NAME``: everything about a package's public names, from its docstrings.

It is made when the site is built, so that it can not be out of date. A public name is one in the ``__all__`` of a
package's ``__init__``.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cache
from types import ModuleType
from typing import Any

from docutils import nodes
from pydantic import BaseModel
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

#: Sections of our docstrings that Napoleon does not know; each is one entry of a field list.
FIELDS = ("Tolerates", "Cost", "Constant", "Peers", "Reference", "Sums", "Weights", "State", "Knows")

#: Modules whose names are public although no package's ``__init__`` says so.
MODULES = ("bezoar.errors", "bezoar.seeding")

#: Sections of a page: title, role of a link, what belongs there.
KINDS: tuple[tuple[str, str, Callable[[object], bool]], ...] = (
    ("Classes", "class", inspect.isclass),
    ("Functions", "func", inspect.isroutine),
    ("Values", "data", lambda value: True),
)

#: Packages that have a page of another kind: the command line.
ELSEWHERE = ("bezoar.cli",)


@cache
def packages() -> tuple[str, ...]:
    """Every package and module that has a page in the reference."""
    import bezoar

    found = ["bezoar", *MODULES]
    for module in pkgutil.walk_packages(bezoar.__path__, "bezoar."):
        private = any(part.startswith("_") for part in module.name.split("."))
        if module.ispkg and not private and module.name not in ELSEWHERE and public(module.name):
            found.append(module.name)
    return tuple(sorted(found))


@cache
def public(module: str) -> tuple[str, ...]:
    """The public names of ``module``, in alphabetical order."""
    loaded = importlib.import_module(module)
    if module in MODULES:
        own = [name for name, value in vars(loaded).items() if getattr(value, "__module__", "") == module]
        return tuple(sorted(name for name in own if not name.startswith("_")))
    return tuple(
        sorted(name for name in getattr(loaded, "__all__", ()) if not isinstance(getattr(loaded, name), ModuleType))
    )


@cache
def homes() -> dict[str, str]:
    """Where to read about a class or function: from ``module.name`` of its definition to ``package.name``.

    Of several packages that have the name, it is the one that the definition lies in.
    """
    known: dict[str, str] = {}
    for package in packages():
        for name in public(package):
            value = getattr(importlib.import_module(package), name)
            if inspect.isclass(value) or inspect.isroutine(value):
                definition = f"{value.__module__}.{value.__qualname__}"
                if definition not in known or definition.startswith(package + "."):
                    known[definition] = f"{package}.{name}"
    return known


def summary(module: str, name: str) -> str:
    """The first sentence of what is said about a name; empty for values, which are described by comments."""
    value = getattr(importlib.import_module(module), name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return ""
    text = (inspect.getdoc(value) or "").split("\n\n", maxsplit=1)[0]
    return " ".join(text.split())


def about(module: str) -> list[str]:
    """What the docstring of ``module`` says, in lines."""
    lines = inspect.cleandoc(importlib.import_module(module).__doc__ or "").splitlines()
    _docstring(None, "module", module, None, None, lines)
    return lines


def _comment(module: str, name: str) -> list[str]:
    """What the ``#:`` comment above a value says, in whichever module it is defined."""
    value = getattr(importlib.import_module(module), name)
    inside = sorted(loaded for loaded in sys.modules if loaded.startswith(module + "."))
    for candidate in (module, *inside):
        if getattr(sys.modules[candidate], name, None) is value:
            found = ModuleAnalyzer.for_module(candidate).find_attr_docs().get(("", name))
            if found:
                return list(found)
    return []


class Package(SphinxDirective):
    """A package's docstring, a table of its public names, and everything about each of them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Nodes of the page."""
        return self.parse_text_to_nodes("\n".join(self._lines(self.arguments[0])), allow_section_headings=True)

    def _lines(self, module: str) -> Iterator[str]:
        loaded = vars(importlib.import_module(module))
        yield from ("```{eval-rst}", f".. py:module:: {module}", "", *about(module), "")
        left = list(public(module))
        for title, role, belongs in KINDS:
            names = [name for name in left if belongs(loaded[name])]
            left = [name for name in left if name not in names]
            if not names:
                continue
            yield from ("```", "", f"## {title}", "", "```{eval-rst}")
            if role != "data":
                yield from (".. list-table::", "   :widths: 30 70", "   :class: names", "")
            for name in names if role != "data" else ():
                yield f"   * - :py:{role}:`~{_home(loaded[name])}`"
                yield f"     - {plain(summary(module, name))}"
            yield ""
            for name in names:
                yield from _description(module, name, role)
        yield "```"


def _home(value: Any) -> str:
    return homes()[f"{value.__module__}.{value.__qualname__}"]


def _description(module: str, name: str, role: str) -> Iterator[str]:
    value = getattr(importlib.import_module(module), name)
    if role == "data":
        yield from (f".. py:data:: {name}", f"   :type: {type(value).__name__}", "")
        yield from (f"   {plain(line)}" for line in _comment(module, name))
    elif _home(value) == f"{module}.{name}":
        yield f".. {'autoclass' if role == 'class' else 'autofunction'}:: {module}.{name}"
        if role == "class":
            yield from ("   :members:", "   :show-inheritance:")
    yield ""


def plain(text: str) -> str:
    """``text`` with its bars escaped: in our docstrings they are norms and sizes, never substitutions.

    >>> plain("|u| and ``|v|``")
    '\\\\|u\\\\| and ``|v|``'
    """
    pieces = re.split(r"(``.*?``|:\w+:`.*?`)", text)
    # A literal must end at the end of a word: ``std``^2.
    return "".join(
        piece if i % 2 else re.sub(r"^(?=[^\s'\")\]}>,.;:!?/-])", r"\ " if i else "", piece.replace("|", r"\|"))
        for i, piece in enumerate(pieces)
    )


def _docstring(app: Sphinx | None, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn ``Cost: text`` with its indented lines into the field ``:Cost: text``, and escape bars; before Napoleon."""
    pattern = re.compile(rf"({'|'.join(FIELDS)}):\s+(?=\S)")
    # Napoleon takes the words before a colon in the first line about an attribute for its type.
    written: list[str] = [""] if what in ("attribute", "property") else []
    field = False
    verbatim: int | None = None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if verbatim is not None and line.strip() and indent <= verbatim:
            verbatim = None
        if verbatim is None and line.lstrip().startswith((".. math::", ".. code", ">>>")):
            verbatim = indent if line.lstrip().startswith("..") else indent - 1
        starts = bool(pattern.match(line))
        if starts and not field and written and written[-1]:
            written.append("")
        field = starts or (field and line.startswith(" "))
        text = line if verbatim is not None else plain(line)
        written.append(":" + text if starts else text)
        if verbatim is None and line.rstrip().endswith("::"):
            verbatim = indent
        if verbatim is not None and verbatim < indent and not line.strip():
            verbatim = None
    lines[:] = written


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """Types as the source has them (``ArrayLike``, not what it stands for); none for settings, which are tables."""
    if inspect.isclass(obj) and issubclass(obj, BaseModel | Enum | BaseException):
        return None, None
    if what not in ("class", "function", "method") or not signature:
        return None
    found = inspect.signature(obj)
    parameters = list(found.parameters.values())
    if what == "method" and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    written = stringify_signature(found.replace(parameters=parameters), show_return_annotation=False)
    annotation = found.return_annotation
    return written, (annotation if isinstance(annotation, str) and what != "class" else None)


def _bases(app: Sphinx, name: str, obj: type, options: object, bases: list[Any]) -> None:
    """In place of a base that is not public stand its own bases."""
    written: list[Any] = []
    for base in bases:
        kind = getattr(base, "__origin__", base)
        hidden = kind.__module__.startswith("bezoar.") and f"{kind.__module__}.{kind.__qualname__}" not in homes()
        written += [ancestor for ancestor in kind.__mro__[1:] if _known(ancestor)][:1] if hidden else [base]
    bases[:] = written or [object]


def _known(value: Any) -> bool:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}" in homes()


@cache
def short() -> dict[str, str]:
    """Where to read about a name that is public in one place only."""
    places: dict[str, set[str]] = {}
    for definition, home in homes().items():
        places.setdefault(definition.rpartition(".")[2], set()).add(home)
    return {name: found.pop() for name, found in places.items() if len(found) == 1}


def _qualify(app: Sphinx, document: nodes.document) -> None:
    """Names in signatures mean what they mean in the module they were written in."""
    for node in document.findall(pending_xref):
        module, target = node.get("py:module"), node["reftarget"]
        if node.get("refdomain") != "py" or "refwarn" in node or not module or "." in target:
            continue
        below = [loaded for name, loaded in sys.modules.items() if f"{name}.".startswith(f"{module}.")]
        values = [vars(loaded)[target] for loaded in below if target in vars(loaded)]
        found = {_home(value) for value in values if _known(value)}
        if len(found) == 1:
            node["reftarget"] = found.pop()


def _elsewhere(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Node | None:
    """A reference by the defining module, or by a name alone, leads to where the object is explained.

    What is explained nowhere here stays text if nobody asked for a link (``Tensor`` in a signature), if it is of
    another library, or if it is a name of ours that is not public. Other names are an error.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    owner, _, member = target.rpartition(".")
    known = {**short(), **homes()}
    home = known.get(target) or (f"{known[owner]}.{member}" if owner in known else None)
    if home is not None and home != target:
        found = env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", home, node, text)
        if found is not None:
            return found
    if hasattr(builtins, target) or (target.partition(".")[0] in sys.modules and not target.startswith("bezoar")):
        return text
    written = "refwarn" in node
    return text if not written or _exists(node.get("py:module") or "", node.get("py:class") or "", target) else None


def _exists(module: str, owner: str, target: str) -> bool:
    """Whether ``target`` is something of ours, in ``module`` or below it, or a member of the class ``owner``."""
    if target.startswith("bezoar.") and _module(target):
        return True
    below = [loaded for name, loaded in sys.modules.items() if name == module or name.startswith(module + ".")]
    wanted = target.split(".")
    roots: list[tuple[object, list[str]]] = [(loaded, path) for loaded in below for path in (wanted, [owner, *wanted])]
    if wanted[0] == "bezoar":
        roots.append((sys.modules["bezoar"], wanted[1:]))
    return any(_follow(root, path) for root, path in roots)


def _module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _follow(root: object, path: list[str]) -> bool:
    missing = object()
    for name in path:
        root = getattr(root, name, missing)
    return root is not missing


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and what makes docstrings fields and links."""
    app.add_directive("package", Package)
    app.connect("autodoc-process-docstring", _docstring, priority=100)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-bases", _bases)
    app.connect("doctree-read", _qualify)
    app.connect("missing-reference", _elsewhere)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
