"""Expected robustness, measured: every rule against every attack, for each set of clients that may be the honest one.

>>> from bezoar.expected import Expected, run
>>> experiment = Expected.from_table({
...     "rounds": 20,
...     "task": {"kind": "ridge", "groups": [3, 2], "features": 3},
...     "prior": {"kind": "explicit", "clients": 5, "bad": [[], [3, 4]], "p": [0.5, 0.5]},
...     "rule": [{"label": "mean", "pipeline": ["mean"]}, {"label": "SIP", "pipeline": [{"kind": "sip"}]}],
...     "attack": [{"kind": "none"}, {"label": "FOE", "kind": "ipm", "epsilon": 100.0}],
... })
>>> result = run(experiment)
>>> len(result.cells), sorted(result.summary["results"], key=lambda row: -row["expected"])[0]["rule"]
(8, 'mean')
"""

from bezoar.expected.config import Expected, Labelled, LabelledAttack, Sets, Task
from bezoar.expected.problems import make_problem
from bezoar.expected.run import ExpectedResult, run

__all__ = ["Expected", "ExpectedResult", "Labelled", "LabelledAttack", "Sets", "Task", "make_problem", "run"]
