"""The example in a process of its own, on NVFlare's simulator: it ends in time, learns, and leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "nvflare"

#: Seconds; a quiet machine needs about 25.
LIMIT = 240


def processes(word: str) -> list[int]:
    """Processes, but this one, whose command line or environment names ``word``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if word.encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_the_example_withstands_its_malicious_client(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(EXAMPLE / "job.py"), "--rounds", "3", "--workspace", str(tmp_path / "workspace")]
    before = sorted(EXAMPLE.rglob("*"))
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=LIMIT)
        # The simulator's last helpers are told to go when it has gone.
        patience = time.monotonic() + 15
        while processes(str(tmp_path)) and time.monotonic() < patience:
            time.sleep(0.2)
        left = processes(str(tmp_path))
    finally:
        for number in {process.pid, *processes(str(tmp_path))}:
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)
        process.wait(10)
    assert process.returncode == 0, said[-3000:]
    assert left == []
    assert sorted(EXAMPLE.rglob("*")) == before
    rounds = re.findall(r"^round (\d): (.*)$", said, flags=re.M)
    assert rounds == [(str(i), "site-4 excluded: farthest from the mean of 4 rows") for i in (1, 2, 3)]
    (share,) = re.findall(r"the last model, on 360 images of its own: ([\d.]+)%", said)
    assert float(share) > 75
    records = Path(re.findall(r"^records: (.*)$", said, flags=re.M)[0])
    summary = json.loads((records / "summary.json").read_text())
    assert (summary["name"], summary["rounds"], summary["rounds_skipped"]) == ("faba", 3, 0)
