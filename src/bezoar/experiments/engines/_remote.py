"""What is sent to other machines as code, so that it runs there without bezoar, or with another one.

Functions that are made inside others travel whole; they may use only what they import themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def check() -> Callable[..., str | None]:
    """A function that says why a machine can not run cells, None if it can."""

    def check_node(ours: dict[str, str], paths: list[str]) -> str | None:
        import os
        import socket
        import sys

        # As on the machine that asked, as far as it is there too: code in a shared or the same folder is found.
        theirs = [path for path in paths if os.path.exists(path or ".")]
        sys.path[:] = theirs + [path for path in sys.path if path not in theirs]
        host = socket.gethostname()
        try:
            from bezoar.experiments.engines.node import unlike
        except ImportError as error:
            return f"node {host} lacks bezoar {ours['version']}: {error}"
        return unlike(host, ours)

    return check_node


def task() -> Callable[..., tuple[str | None, Any]]:
    """A function that runs a cell: why the machine can not, and the answer."""

    def run_cell(ours: dict[str, str], paths: list[str], key: str, work: bytes, news: Any) -> tuple[str | None, Any]:
        import os
        import pickle
        import socket
        import sys

        # As on the machine that asked, as far as it is there too: code in a shared or the same folder is found.
        theirs = [path for path in paths if os.path.exists(path or ".")]
        sys.path[:] = theirs + [path for path in sys.path if path not in theirs]
        host = socket.gethostname()
        news.at.remote(key, f"{host} (process {os.getpid()})")
        try:
            from bezoar.experiments.engines.node import fulfil, unlike
        except ImportError as error:
            return f"node {host} lacks bezoar {ours['version']}: {error}", None
        wrong = unlike(host, ours)
        if wrong is not None:
            return wrong, None

        class Way:
            def tell(self, record: dict[str, Any]) -> None:
                news.tell.remote(key, record)

            def deliver(self, parcel: Any) -> None:
                import contextlib

                import ray

                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(news.deliver.remote(key, dict(parcel.files), parcel.names))

        return None, fulfil(pickle.loads(work), host, Way())

    return run_cell


def news() -> type[Any]:
    """The actor that workers tell, and who asked for the cells asks."""

    class News:
        def __init__(self) -> None:
            self._nodes: dict[str, str] = {}
            self._records: list[tuple[str, dict[str, Any]]] = []
            self._files: dict[str, tuple[dict[str, bytes], frozenset[str]]] = {}

        def at(self, key: str, node: str) -> None:
            self._nodes[key] = node

        def tell(self, key: str, record: dict[str, Any]) -> None:
            self._records.append((key, record))

        def deliver(self, key: str, files: dict[str, bytes], names: frozenset[str]) -> None:
            waiting = self._files[key][0] if key in self._files else {}
            self._files[key] = {**waiting, **files}, names

        def take(self) -> tuple[dict[str, str], list[tuple[str, dict[str, Any]]], dict[str, Any]]:
            taken = self._nodes, self._records, self._files
            self._nodes, self._records, self._files = {}, [], {}
            return taken

    return News
