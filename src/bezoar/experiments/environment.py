"""What a result was made with: versions, hardware, commit."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path

import torch

from bezoar._version import __version__


def versions() -> dict[str, str]:
    """Versions of what computes the result."""
    import numpy

    return {
        "bezoar": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def hardware(device: torch.device) -> dict[str, str | int]:
    """Processor, threads and device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"cpu": _processor(), "threads": torch.get_num_threads(), "device": name}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def source() -> str:
    """A digest of the package's own code: equal where the code is."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def commit() -> str | None:
    """The commit of the checkout that bezoar runs from, marked if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        inside = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            timeout=10,
            check=False,
        )
        if inside.returncode != 0:
            return None
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
