"""How Sphinx builds the documentation: ``make docs``.

The source directory is the repository, so that a link between two pages is the same on the site as it is anywhere else
(``../results/README.md``). Nothing that a page shows comes from the network.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent / "src")]

from docutils import nodes  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

from bezoar import __version__  # noqa: E402

project = "bezoar"
author = "The bezoar authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",
    "reference",
    "command_line",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "examples/**/README.md",
    "benchmarks/README.md",
    "results/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".*", "build", "dist", "src", "tests", "runs", ".venv"]

myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
# Quotes only: two dashes begin an option.
smartquotes_action = "q"

autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True

# Every link that somebody wrote must lead somewhere.
nitpicky = True

html_theme = "furo"
html_title = f"bezoar {version}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]


def others(text: str) -> list[str]:
    """Pages that no list of the front page ``text`` has: those of docs, and those of the examples."""
    listed = set(re.findall(r"^(?:.*<)?([\w./-]+)>?$", text, flags=re.M)) | {"index"}
    examples = [
        f"../{page.parent.relative_to(DOCS.parent)}/README" for page in DOCS.parent.glob("examples/*/README.md")
    ]
    pages = [page.stem for page in sorted(DOCS.glob("*.md"))] + sorted(examples)
    return [page for page in pages if page not in listed]


def _front_page(app: Sphinx, name: str, source: list[str]) -> None:
    if name == root_doc:
        source[0] = source[0].replace("@others", "\n".join(others(source[0])))


def _titles(app: Sphinx, document: nodes.document, name: str) -> None:
    """Where a link shows the name of a file (``rules.md``), the site shows the title of the page."""
    for link in document.findall(nodes.reference):
        if link.get("internal") and link.astext().endswith(".md"):
            target = posixpath.normpath(
                posixpath.join(posixpath.dirname(name), link.get("refuri", "").partition("#")[0])
            )
            page = target.removesuffix(".html")
            if page in app.env.titles:
                title = re.split(r"[:,]", app.env.titles[page].astext())[0]
                link.children = []
                link += nodes.emphasis("", title)


def _entrance(app: Sphinx, error: Exception | None) -> None:
    """The site's own address leads to its front page."""
    if error is None:
        page = (
            '<!doctype html><meta charset="utf-8"><title>bezoar</title><meta http-equiv="refresh" content="0; url={0}">'
        )
        page += '<a href="{0}">bezoar</a>\n'
        Path(app.outdir, "index.html").write_text(page.format(root_doc + ".html"), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """A new page is on the front page even if nobody has put it there."""
    app.connect("source-read", _front_page)
    app.connect("doctree-resolved", _titles)
    app.connect("build-finished", _entrance)
