"""What the build adds to pyproject.toml: the README as a package index shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def readme(text: str, source: str | None) -> str:
    """``text`` without links and pictures that are relative, which lead nowhere outside of the repository.

    With the address of the sources, ``source``, links lead there; without, their words stay. Pictures go, and the
    line with them if nothing else is in it.

    >>> readme("[all rules](docs/rules.md), ![curves](docs/a.png), [x](https://x.org)", None)
    'all rules, , [x](https://x.org)'
    >>> readme("[all rules](docs/rules.md)", "https://example.org/bezoar")
    '[all rules](https://example.org/bezoar/blob/main/docs/rules.md)'
    """

    def replaced(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if picture:
            return ""
        return words if source is None else f"[{words}]({source.rstrip('/')}/blob/main/{path})"

    text = re.sub(r"^!\[[^\]]*\]\((?![a-z]+:)[^)\s]+\)\n+", "", text, flags=re.M)
    return LINK.sub(replaced, text)


class CustomMetadataHook(MetadataHookInterface):
    """Fills ``readme`` in."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Put the long description, Markdown, into ``metadata``."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme(text, source)}
