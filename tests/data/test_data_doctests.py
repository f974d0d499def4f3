from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["dataset", "loaders", "partitions", "sampling"])
def test_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"bezoar.data.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
