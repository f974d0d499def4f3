from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory of real data sets; the test is skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BEZOAR_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a directory (set BEZOAR_DATA)")
    return folder
