"""What a job needs beside the aggregator: no copy of the package, and patience with clients that fail."""

from __future__ import annotations

from typing import Any

from bezoar.errors import ConfigError

#: How NVFlare's workflows remember whether a client's error ends the job.
_ERRORS = ("_ignore_result_error", "ignore_result_error")


def use_installed(job: Any) -> Any:
    """Let a job use the bezoar that is installed where it runs, and carry no copy; returns ``job``.

    NVFlare packs the source of every component that is not its own, and of what that imports, into the job. The
    package then has to be installed at the server (clients do not need it), and the server's ``class_allow_list`` has
    to know ``bezoar.integrations.nvflare``, unless the job carries code of its own (a training script is code).

    Args:
        job: a recipe of NVFlare, or a ``FedJob``.
    """
    found = _fed_job(job)
    found.set_app_packages(sorted({*found.job.app_packages, "bezoar"}))
    return job


def forgive_errors(job: Any) -> Any:
    """Let no client's error end a job; returns ``job``.

    As NVFlare comes, one client that reports an error ends FedAvg for all, since the others are too few. Forgiven
    clients are ``missing`` in the verdicts.

    Args:
        job: a recipe of NVFlare, or a ``FedJob``; what was added to its server so far.

    Raises:
        ConfigError: no workflow of the job knows how to forgive.
    """
    found = 0
    for app in _fed_job(job)._deploy_map.values():
        for workflow in getattr(app.app_config, "workflows", ()):
            for name in _ERRORS:
                if hasattr(workflow.controller, name):
                    setattr(workflow.controller, name, True)
                    found += 1
    if not found:
        raise ConfigError("the job has no workflow that can ignore a client's error; add FedAvg or another first")
    return job


def _fed_job(job: Any) -> Any:
    found = getattr(job, "_job", job)  # A recipe keeps its job to itself.
    if not hasattr(found, "set_app_packages") or not hasattr(found, "_deploy_map"):
        raise ConfigError(f"neither a recipe of NVFlare nor a FedJob: {job!r}")
    return found
