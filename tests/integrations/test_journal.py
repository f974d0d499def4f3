from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from bezoar.integrations.journal import Journal


@pytest.mark.parametrize(("kind", "package"), [("flower", "flwr"), ("nvflare", "nvflare"), ("another", None)])
def test_the_summary_names_the_framework_that_ran_and_no_other(tmp_path: Path, kind: str, package: str | None) -> None:
    pytest.importorskip(package or "json")
    journal = Journal(tmp_path / "out", {"kind": kind, "name": "ward", "seed": 0})
    journal.open(resume=False)
    journal.finish({"w": np.zeros(2, np.float32)}, 2)
    versions = json.loads((tmp_path / "out" / "summary.json").read_text())["versions"]
    found = {name: value for name, value in versions.items() if name in ("flwr", "nvflare")}
    assert found == ({} if package is None else {package: version(package)})
