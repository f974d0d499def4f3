"""The app in this process, without Ray and without a network: ``python -m bezoar_digits rounds=3 'attack="none"'``."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from bezoar.integrations.flower import run_in_process
from bezoar_digits import client_app, server_app

#: Settings beside those of the app.
CLIENTS = "clients"


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of pyproject.toml, but for what ``arguments`` say, each ``key=value`` as in TOML."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    settings = {CLIENTS: 10, **tomllib.loads(text)["tool"]["flwr"]["app"]["config"]}
    given = tomllib.loads("\n".join(arguments))
    for key in given.keys() - settings.keys():
        raise SystemExit(f"no setting is called {key!r}; there are {', '.join(settings)}")
    settings |= given
    clients = int(settings.pop(CLIENTS))
    run_in_process(server_app.app, client_app.app, clients, settings, seed=int(settings["seed"]))


if __name__ == "__main__":
    main(sys.argv[1:])
