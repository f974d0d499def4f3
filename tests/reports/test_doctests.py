from __future__ import annotations

import doctest

import pytest

import bezoar.reports
from bezoar.reports import _bars, _drawing, _plane, estimates, page


@pytest.mark.parametrize("module", [bezoar.reports, _bars, _drawing, _plane, estimates, page])
def test_examples_in_docstrings_run(module) -> None:
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0
