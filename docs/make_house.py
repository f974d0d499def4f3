"""Draw which package imports which: ``python docs/make_house.py`` writes ``docs/images/house.svg`` from the sources.

A package stands above everything that it imports. Lines that follow from others are left out (if a imports b and b
imports c, no line is drawn from a to c). Two packages that import each other are an error.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from html import escape
from pathlib import Path
from textwrap import wrap

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "src" / "bezoar"
PICTURE = DOCS / "images" / "house.svg"

WIDTH, BOX, HEIGHT, GAP, ROW = 840, 184, 76, 20, 122

#: So many boxes fit into the width.
MOST = 4

#: The way of the data through a round.
WAY = ("data", "clients", "attacks", "aggregation", "servers", "experiments", "reports")


def packages() -> tuple[str, ...]:
    """Public packages directly below bezoar, in alphabetical order."""
    return tuple(sorted(p.parent.name for p in SOURCE.glob("[a-z]*/__init__.py")))


def imports() -> dict[str, set[str]]:
    """Package -> packages that any of its modules imports, also inside of functions."""
    known = set(packages())
    found: dict[str, set[str]] = {name: set() for name in known}
    for name in known:
        for file in (SOURCE / name).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                paths = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                paths += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                found[name] |= {path.split(".")[1] for path in paths if path.startswith("bezoar.")} & known - {name}
    return found


def levels(edges: Mapping[str, set[str]]) -> dict[str, int]:
    """Package -> the length of the longest chain of imports below it.

    Raises:
        ValueError: packages import each other in a circle, which is named.
    """
    level: dict[str, int] = {}

    def measure(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise ValueError("imports go round: " + " -> ".join((*above[above.index(name) :], name)))
        if name not in level:
            level[name] = 1 + max((measure(other, (*above, name)) for other in sorted(edges[name])), default=-1)
        return level[name]

    for name in sorted(edges):
        measure(name, ())
    return level


def spread(level: Mapping[str, int], edges: Mapping[str, set[str]], most: int = MOST) -> dict[str, int]:
    """``level`` with packages raised out of rows of more than ``most``, as far as those that import them allow."""
    level = dict(level)
    for height in range(max(level.values())):
        row = sorted(name for name in level if level[name] == height)
        room = {n: min((level[o] for o in edges if n in edges[o]), default=height + 1) - height - 1 for n in row}
        for name in sorted(row, key=lambda name: (-room[name], name))[: max(0, len(row) - most)]:
            level[name] += min(room[name], 1)
    return level


def reduced(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """``edges`` without those that follow from others."""

    def below(name: str) -> set[str]:
        return edges[name] | {far for near in edges[name] for far in below(near)}

    return {name: {o for o in others if not any(o in below(x) for x in others - {o})} for name, others in edges.items()}


def _rows(level: Mapping[str, int], edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Packages from the bottom up; in a row, each stands where the packages that it imports stand on average."""
    rows: list[list[str]] = []
    place: dict[str, float] = {}
    for height in range(max(level.values()) + 1):
        row = sorted(name for name in level if level[name] == height)

        def wanted(name: str) -> float:
            near = [place[other] for other in edges[name]]
            return sum(near) / len(near) if near else 0.5

        row.sort(key=lambda name: (wanted(name), name))
        for i, name in enumerate(row):
            place[name] = (i + 1) / (len(row) + 1)
        rows.append(row)
    return rows


def picture() -> str:
    """The drawing, SVG."""
    edges = imports()
    drawn = reduced(edges)
    rows = _rows(spread(levels(edges), edges), drawn)
    height = ROW * len(rows) + 2 * GAP
    corner: dict[str, tuple[float, float]] = {}
    for i, row in enumerate(rows):
        start = (WIDTH - len(row) * BOX - (len(row) - 1) * GAP) / 2
        for j, name in enumerate(row):
            corner[name] = (start + j * (BOX + GAP), height - GAP - HEIGHT - i * ROW)
    lines, boxes = [], []
    for name in sorted(drawn):
        x, y = corner[name]
        for other in sorted(drawn[name]):
            u, v = corner[other]
            a, b, c = x + BOX / 2, y + HEIGHT, u + BOX / 2
            lines.append(f'<path d="M{a:.0f},{b:.0f} C{a:.0f},{b + 30:.0f} {c:.0f},{v - 30:.0f} {c:.0f},{v:.0f}"/>')
        doc = ast.get_docstring(ast.parse((SOURCE / name / "__init__.py").read_text(encoding="utf-8"))) or ""
        words = wrap(doc.partition("\n")[0], 29, max_lines=4, placeholder=" …")
        kind = "way" if name in WAY else "aside"
        boxes.append(f'<g class="{kind}"><rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="6"/>')
        boxes.append(f'<text class="name" x="{x + 8:.0f}" y="{y + 16:.0f}">{escape(name)}</text>')
        boxes += [
            f'<text x="{x + 8:.0f}" y="{y + 31 + 12.5 * k:.1f}">{escape(word)}</text>' for k, word in enumerate(words)
        ]
        boxes.append("</g>")
    style = (
        "text{font:10.5px sans-serif;fill:#333}.name{font:bold 14px sans-serif;fill:#111}"
        "path{fill:none;stroke:#8a94a6;stroke-width:1.2}.way rect{fill:#dcefe3;stroke:#3c8d5a}"
        ".aside rect{fill:#eef1f6;stroke:#9aa5b8}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            "<title>The packages of bezoar; each stands above those it imports</title>",
            f"<style>{style}</style>",
            f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#fff"/>',
            *lines,
            *boxes,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
