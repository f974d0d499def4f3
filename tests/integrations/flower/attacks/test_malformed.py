from __future__ import annotations

import pytest
from flwr.app import ArrayRecord

from bezoar.aggregation import TrimmedMean
from bezoar.integrations.flower import InProcessGrid, RobustStrategy, Status, malformed_mod
from bezoar.integrations.flower.attacks.malformed import _KINDS
from tests.integrations.flower.apps import client, net
from tests.integrations.flower.attacks.federation import BAD, N, answers, arrays_in, metrics

#: What the gate says to the others.
SEEN = {"weight": Status.KEPT, "error": Status.FAILED}


@pytest.mark.parametrize("kind", _KINDS)
def test_the_gate_sees_every_kind_in_malicious_clients_alone(kind: str) -> None:
    strategy = RobustStrategy(TrimmedMean(f=3), fraction_evaluate=0.0)
    grid = InProcessGrid(client(mods=[malformed_mod(kind, BAD)]), N)
    strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=1)
    assert strategy.skipped is None
    wanted = SEEN.get(kind, Status.EXCLUDED)
    assert [v.status for v in strategy.verdicts] == [wanted if c in BAD else Status.KEPT for c in range(N)]


def test_a_claim_is_all_that_changes() -> None:
    made, honest = answers([malformed_mod("weight", BAD)]), answers()
    for bad in BAD:
        assert metrics(made[bad])["metrics"] == {**metrics(honest[bad])["metrics"], "num-examples": 10**12}
        assert {k: a.data for k, a in arrays_in(made[bad]).items()} == {
            k: a.data for k, a in arrays_in(honest[bad]).items()
        }
