from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes depends on what else the machine does: no test may fail of it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory of real data sets; the test is skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BEZOAR_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a directory (set BEZOAR_DATA)")
    return folder
