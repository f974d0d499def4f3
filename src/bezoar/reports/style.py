"""How every figure looks: colours, line styles, sizes, and how a matplotlib figure becomes part of a page.

The eight series colours were chosen so that they stay apart in simulated protanopia, deuteranopia and tritanopia
(CIELAB distance of at least 15 for each pair) and differ in lightness; dashes and markers tell them apart in grey.
On the page every colour is a CSS variable, so that the same drawing has light, dark and print colours.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

WIDTH = 3.4
"""Inches: one column of a two-column paper; a phone shows it at 1.3 times that size."""

INK, MUTED, GRID, GHOST, HALO = "#1b1f24", "#5b6470", "#dde1e6", "#c3c9d1", "#fefefe"
SERIES = ("#2b2f36", "#0b5fa5", "#b83800", "#00936c", "#a8437f", "#cf9200", "#45a9dc", "#6b4423")
"""The first one, near black, is kept for "no defence"."""
PHASE = ("#34506b", "#8fa9c2", "#c8642b", "#e8b48f", "#b9bfc7")
DARK = {
    INK: "#e6e9ed",
    MUTED: "#9aa4b1",
    GRID: "#2d333b",
    GHOST: "#4a525c",
    HALO: "#14171b",
    **dict(
        zip(
            SERIES,
            ("#e6e9ed", "#4390e0", "#ee6c2c", "#2fc49b", "#d678b4", "#f4cb62", "#a4e0ff", "#b3835a"),
            strict=True,
        )
    ),
    **dict(zip(PHASE, ("#7d9dbd", "#43607c", "#e8834a", "#8a5535", "#5d6670"), strict=True)),
}
_DASHES: tuple[Any, ...] = ("solid", (0, (4.5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.6, 1.2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<")


@dataclass(frozen=True)
class Look:
    """Colour, dashes and marker of one series, the same in every figure and table of a report."""

    color: str
    dashes: Any
    marker: str


def looks(names: Sequence[str], baseline: str | None) -> dict[str, Look]:
    """One look per name. The baseline is drawn in ink; 7 colours x 5 dashes tell 35 further series apart."""
    found = {}
    index = 0
    for name in names:
        if name == baseline:
            found[name] = Look(SERIES[0], _DASHES[0], _MARKERS[0])
            continue
        color = SERIES[1 + index % 7]
        found[name] = Look(color, _DASHES[(index + index // 7) % 5], _MARKERS[(index + 1) % len(_MARKERS)])
        index += 1
    return found


@dataclass(frozen=True)
class Panel:
    """One drawing: ``draw`` fills a figure or subfigure of the plot's panel size."""

    title: str
    draw: Callable[[FigureBase], None]


@dataclass(frozen=True)
class Plot:
    """Small multiples: on the page each panel is a drawing of its own, in a file they stand in two columns."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    height: float
    width: float = WIDTH

    def svgs(self) -> list[str]:
        """Each panel as an SVG element to put into a page."""
        return [self._svg(index, panel) for index, panel in enumerate(self.panels)]

    def write(self, folder: Path) -> list[Path]:
        """All panels together as ``folder/name.pdf`` and ``.png``."""
        from matplotlib.figure import Figure

        columns = 1 if len(self.panels) == 1 or self.width > WIDTH else 2
        rows = -(-len(self.panels) // columns)
        files = []
        with styled():
            figure = Figure(figsize=(columns * self.width, rows * self.height))
            if len(self.panels) == 1:
                self.panels[0].draw(figure)
            else:
                places = figure.subfigures(rows, columns, squeeze=False, wspace=0, hspace=0)
                for place, panel in zip(places.flat, self.panels, strict=False):
                    panel.draw(place)
            for kind, metadata in (("pdf", {"CreationDate": None, "Creator": None, "Producer": None}), ("png", None)):
                file = folder / f"{self.name}.{kind}"
                figure.savefig(file, dpi=220, facecolor="white", metadata=metadata)
                files.append(file)
        return files

    def _svg(self, index: int, panel: Panel) -> str:
        from matplotlib.figure import Figure

        with styled():
            figure = Figure(figsize=(self.width, self.height))
            panel.draw(figure)
            return inline_svg(
                figure, f"{self.name}-{index}", f"{self.title}: {panel.title}" if panel.title else self.title
            )


@contextmanager
def styled() -> Iterator[None]:
    """Draws in this module's style whatever the user's matplotlibrc says, with text as text."""
    import matplotlib.style

    style = {
        "font.family": "DejaVu Sans",
        "font.size": 7.5,
        "text.color": INK,
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.6,
        "axes.labelcolor": MUTED,
        "axes.labelsize": 7,
        "axes.titlesize": 7.5,
        "axes.titlelocation": "left",
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.5,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "lines.linewidth": 1.4,
        "svg.fonttype": "none",
        "svg.hashsalt": "bezoar",
        "pdf.fonttype": 42,
        "figure.dpi": 72,
    }
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
        # A label may use a script that the font lacks: the page shows it in the reader's font, a PDF shows boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """A figure as an ``<svg>`` element: scalable, ids unique by ``prefix``, colours as CSS variables, no namespaces."""
    from html import escape

    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    body = svg[svg.index(">") + 1 :]
    view = re.search(r'viewBox="([^"]*)"', svg)
    assert view is not None
    body = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(?:xlink:)?href="#([^"]*)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'\b(?:d|x|y|transform|points)="[^"]*"', lambda m: _shorter(m.group()), body)
    body = re.sub(r'\bstyle="[^"]*"', lambda m: _themed(m.group()), body)
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="{view.group(1)}">{body}'.rstrip()


def css(colors: dict[str, str] | None = None) -> str:
    """The CSS variables of all colours, as drawn or as ``colors`` maps them."""
    return "".join(f"--{name}:{colors[value] if colors else value};" for value, name in _VARIABLES.items())


def swatch(look: Look) -> str:
    """A short piece of the series' line with its marker, for a table."""
    dash = "" if look.dashes == "solid" else f' stroke-dasharray="{" ".join(str(v * 1.6) for v in look.dashes[1])}"'
    color = f"var(--{_VARIABLES[look.color]})"
    return (
        f'<svg class="swatch" viewBox="0 0 30 10" aria-hidden="true" style="color:{color}">'
        f'<path d="M0 5H30" stroke="currentColor" stroke-width="2" fill="none"{dash}/>'
        f'<path d="{_SHAPES[look.marker]}" fill="currentColor"/></svg>'
    )


_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    GHOST: "ghost",
    HALO: "paper",
    **{color: f"s{index}" for index, color in enumerate(SERIES)},
    **{color: f"p{index}" for index, color in enumerate(PHASE)},
}
_SHAPES = {
    "o": "M15 1a4 4 0 1 0 .01 0z",
    "s": "M11.5 1.5h7v7h-7z",
    "^": "M15 .5l4.5 8.5h-9z",
    "D": "M15 0l5 5-5 5-5-5z",
    "v": "M15 9.5l4.5-8.5h-9z",
    "P": "M13.5 .5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "X": "M11 2.5l1.5-1.5L15 3.5l2.5-2.5L19 2.5 16.5 5 19 7.5 17.5 9 15 6.5 12.5 9 11 7.5 13.5 5z",
    "h": "M15 .5l4 2.2v4.6l-4 2.2-4-2.2V2.7z",
    "<": "M10.5 5l8.5-4.5v9z",
}


def _shorter(attribute: str) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute)


def _themed(style: str) -> str:
    return re.sub(
        r"#[0-9a-f]{6}", lambda m: f"var(--{name})" if (name := _VARIABLES.get(m.group())) else m.group(), style
    )
