"""The command line: run, compare, report, certify, choose-k, list, priors, conformance.

A command lives in a module of its own, which this one imports so that it is registered.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from bezoar.cli import catalogue, certify, choose_k, conformance, experiments, priors
from bezoar.cli.app import app
from bezoar.errors import BezoarError, ConfigError, ElsewhereError

__all__ = ["app", "catalogue", "certify", "choose_k", "conformance", "experiments", "main", "priors"]


def _stop(message: str, status: int) -> NoReturn:
    typer.echo(f"bezoar: {message}", err=True)
    sys.exit(status)


def main() -> None:
    """Entry point: errors are one line, wrong use exits with 2, other failures with 1, Ctrl-C with 130."""
    try:
        app()
    except ElsewhereError:
        sys.exit(1)
    except ConfigError as error:
        _stop(str(error), 2)
    except BezoarError as error:
        from bezoar.experiments.run import Interrupted

        _stop(str(error), 130 if isinstance(error, Interrupted) else 1)
    except KeyboardInterrupt:
        _stop("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _stop(f"{error.filename or ''}: {error.strerror}".lstrip(": "), 1)
