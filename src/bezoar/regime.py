"""What the regime of an experiment is called: the word that its numbers can not be compared without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {"gradient": "uncompressed", "local": "FedAvg"}


def regime(table: Mapping[str, Any]) -> str:
    """The regime of an experiment from its resolved table; empty if that does not say.

    In the regime "uncompressed" clients send gradients and the server applies the learning rate; in "FedAvg" they
    train, send displacements, and the rate is theirs. "+ adaptive clipping": the clipping radius follows the rate.

    >>> regime({"clients": {"kind": "local"}, "defence": {"adaptive_clip": True, "pipeline": [{"kind": "clip"}]}})
    'FedAvg + adaptive clipping'
    """
    clients, defence = table.get("clients"), table.get("defence")
    if not isinstance(clients, Mapping) or not isinstance(defence, Mapping) or "kind" not in clients:
        return ""
    name = _NAMES.get(str(clients["kind"]), str(clients["kind"]))
    clips = any(isinstance(part, Mapping) and part.get("kind") == "clip" for part in defence.get("pipeline", ()))
    return f"{name} + adaptive clipping" if clips and defence.get("adaptive_clip") else name
