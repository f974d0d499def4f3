"""Formulas as MathML, which every current browser draws itself: no script and no network when a page is read.

The font is a part of STIX Two Math (``_static``), as not every machine has one for mathematics.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.nodes import get_node_line
from sphinx.writers.html5 import HTML5Translator

#: Commands that the converter does not know, and what means the same to it.
REPLACED = {"tfrac": r"\frac", "dfrac": r"\frac", "dots": r"\ldots"}

_COMMAND = re.compile(r"\\(tfrac|dfrac|dots)(?![A-Za-z])")

#: Delimiters of a given size are left or right ones there.
_SIZED = re.compile(r"\\([bB]igg?)(?=\s*(\)|\]|\\[}|]|\\r)?)(?![A-Za-z])")

#: An index of an accented letter is an index, not a limit.
_ACCENT = re.compile(r"\\(?:bar|hat|tilde|vec|dot)\s*(?:\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z])(?=\s*[_^])")

#: Bars and brackets without \\left and \\right: no larger than letters, and no operators.
_FENCE = re.compile(r'<mo(?: stretchy="false")?>([|‖⟨⟩])</mo>')


def formula(tex: str, block: bool) -> str:
    r"""MathML of ``tex``.

    Raises:
        MathError: the converter does not understand it.

    >>> "".join(formula(r"\tfrac{f}{n}", block=False).split())
    '<mathxmlns="http://www.w3.org/1998/Math/MathML"><mfrac><mi>f</mi><mi>n</mi></mfrac></math>'
    """
    tex = _COMMAND.sub(lambda found: REPLACED[found[1]], tex)
    tex = _SIZED.sub(lambda found: rf"\{found[1]}{'r' if found[2] else 'l'}", tex)
    tex = _ACCENT.sub(lambda found: "{" + found[0] + "{}}", tex)
    try:
        return _FENCE.sub(r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', tex2mathml(tex, as_block=block))
    except AttributeError:
        raise MathError("can not be read") from None


def pieces(tex: str) -> list[str]:
    r"""``tex`` cut where a line may be broken: behind ``\quad`` outside of braces and environments.

    >>> pieces(r"a = \frac{b \quad}{c},\quad d")
    ['a = \\frac{b \\quad}{c},', 'd']
    """
    found, depth, start = [], 0, 0
    for token in re.finditer(r"\\begin|\\end|\\left(?![a-z])|\\right(?![a-z])|\\quad|\\\\|\\.|[{}]", tex):
        depth += {"{": 1, "\\begin": 1, "\\left": 1, "}": -1, "\\end": -1, "\\right": -1}.get(token[0], 0)
        if token[0] == "\\quad" and depth == 0:
            found.append(tex[start : token.start()].strip())
            start = token.end()
    return [*found, tex[start:].strip()]


def _converted(node: nodes.Element, tex: str, block: bool) -> str:
    try:
        return formula(tex, block)
    except MathError as error:
        raise SphinxError(f"{node.source}:{get_node_line(node)}: {error}: {tex}") from None


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_converted(node, node.astext(), block=False))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    tex = node.astext()
    parts = [tex] if re.search(r"\\\\", tex) else pieces(tex)
    written = "".join(_converted(node, part, block=True) for part in parts)
    translator.body.append(f'<div class="formula">{written}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
