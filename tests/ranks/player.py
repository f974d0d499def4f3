"""Plays experiments on the ranks that started it: ``torchrun ... -m tests.ranks.player JOBS.json [DEVICE]``.

A job is a table, a directory, and whether to resume; ``stop_at`` interrupts rank 0 after that round. Every rank writes
what it got to ``OUT.rankR.json``, or ``SAY.rankR.json`` if it is told to.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bezoar.errors import BezoarError
from bezoar.experiments import Experiment, run
from bezoar.kernels.bits import checksum
from bezoar.ranks import Ranks
from bezoar.ranks.torchrun import device_of, joined


def play(job: Mapping[str, Any], ranks: Ranks, device: str) -> dict[str, Any]:
    def progress(record: Mapping[str, Any]) -> None:
        if record["kind"] == "round" and record["round"] == job.get("stop_at"):
            os.kill(os.getpid(), signal.SIGINT)

    before = dict(ranks.sent)
    try:
        experiment = Experiment.from_table(job["table"])
        again = job.get("resume", False)
        result = run(experiment, job["out"], resume=again, device=device, progress=progress, ranks=ranks)
    except BezoarError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    sent = {kind: amount - before.get(kind, 0) for kind, amount in ranks.sent.items()}
    flat = torch.cat([value.reshape(-1) for value in result.weights.values()])
    return {
        "checksum": int(checksum(flat)),
        "rounds": len(result.rounds),
        "sent": sent,
        "summary": result.summary,
        "directory": None if result.directory is None else str(result.directory),
    }


def check_talk(ranks: Ranks) -> dict[str, Any]:
    """Every kind of talk once, with numbers of which all know what must come out."""
    r, size = ranks.rank, ranks.size
    draws = torch.randn(1001, generator=torch.Generator().manual_seed(r))
    everyones = torch.stack([torch.randn(1001, generator=torch.Generator().manual_seed(i)) for i in range(size)])
    total = ranks.total(draws.clone())
    assert torch.allclose(total, everyones.sum(0), atol=1e-5)
    assert torch.equal(ranks.largest(draws.clone()), everyones.amax(0))
    lengths = [3, 0, 5, 1][:size]
    assert ranks.gather(torch.full((lengths[r], 2), float(r)), lengths)[:, 0].tolist() == [
        float(i) for i in range(size) for _ in range(lengths[i])
    ]
    pieces = [torch.full((to + 1, 2), 10.0 * r + to) for to in range(size)]
    found = ranks.exchange(pieces, [(r + 1, 2)] * size)
    assert [part.flatten().tolist() for part in found] == [[10.0 * i + r] * 2 * (r + 1) for i in range(size)]
    assert ranks.said({"from": r, "list": [1, "ä"]}) == {"from": 0, "list": [1, "ä"]}
    assert ranks.told(torch.tensor([r == 0, False])).tolist() == [True, False]
    assert ranks.told(torch.empty(0)).tolist() == []
    assert ranks.texts(["", "zwei", "III", "4"][r]) == ["", "zwei", "III", "4"][:size]
    whys = []
    for failing in (size - 1, 0):

        def act(failing: int = failing) -> int:
            if r == failing:
                raise BezoarError(f"broken at {r}")
            return r

        try:
            ranks.together(act)
        except BezoarError as error:
            whys.append(f"{type(error).__name__}: {error}")
    assert ranks.on_first(lambda: 7) == (7 if r == 0 else None)
    return {"total": total.tolist(), "whys": whys}


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    device = device_of(sys.argv[2] if len(sys.argv) > 2 else "cpu")
    with joined(device, timeout=120) as ranks:
        Path(f"{sys.argv[1]}.talk{ranks.rank}.json").write_text(json.dumps(check_talk(ranks)))
        for job in jobs:
            Path(f"{job.get('say', job['out'])}.rank{ranks.rank}.json").write_text(json.dumps(play(job, ranks, device)))


if __name__ == "__main__":
    main()
