"""What becomes of bezoar in a job that is packed for other machines."""

from __future__ import annotations

from typing import Any

from bezoar.errors import ConfigError


def use_installed(job: Any) -> Any:
    """Let a job use the bezoar that is installed where it runs, and carry no copy; returns ``job``.

    NVFlare packs the source of every component that is not its own, and of what that imports, into the job. The
    package then has to be installed at the server (clients do not need it), and the server's ``class_allow_list`` has
    to know ``bezoar.integrations.nvflare``, unless the job carries code of its own (a training script is code).

    Args:
        job: a recipe of NVFlare, or a ``FedJob``.
    """
    found = getattr(job, "_job", job)  # A recipe keeps its job to itself.
    settings = getattr(found, "job", None)
    if settings is None or not hasattr(found, "set_app_packages"):
        raise ConfigError(f"neither a recipe of NVFlare nor a FedJob: {job!r}")
    found.set_app_packages(sorted({*settings.app_packages, "bezoar"}))
    return job
