"""Jobs as recipes export them: plain values that build the same aggregator again, and no copy of the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare")

from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.fuel.utils.class_utils import instantiate_class
from nvflare.job_config.api import FedJob

from bezoar.aggregation import FABA, NNM, SIP, Bucketing, CenteredClipping, Clip, Mean, TrimmedMean
from bezoar.errors import ConfigError
from bezoar.experiments.defence import PRESETS, Defence
from bezoar.integrations.nvflare import RobustAggregator, forgive_errors, use_installed
from bezoar.integrations.nvflare.books import settings
from bezoar.priors import Independent
from bezoar.servers import SGD, FetchSGD, SparseFed

NEEDED: dict[str, dict[str, Any]] = {
    "trimmed-mean": {"f": 1},
    "krum": {"f": 1},
    "bulyan": {"f": 1},
    "crfl": {"radius": 1.0, "std": 0.1},
}

AGGREGATORS = {
    **{f"preset {name}": RobustAggregator({"preset": name, **NEEDED.get(name, {})}) for name in PRESETS},
    "name alone": RobustAggregator("sparsefed", server={"kind": "sgd", "momentum": 0.5}),
    "rule": RobustAggregator(FABA(f=1), lr=0.5, seed=3),
    "pipeline": RobustAggregator(Clip(5.0) >> Bucketing(2) >> NNM(f=1) >> TrimmedMean(f=1), SparseFed(k="1%")),
    "prior": RobustAggregator(SIP(Independent(0.1), base=NNM(f=1) >> TrimmedMean(f=1))),
    "history": RobustAggregator(CenteredClipping(1.0), FetchSGD(k=3, rows=3, columns=64)),
    "defence": RobustAggregator(Defence(Mean(weighted=True), SGD(momentum=0.9))),
    "everything": RobustAggregator(
        Mean(),
        SGD(momentum=0.1),
        0.5,
        3.0,
        ["*.count"],
        "keep",
        clients=["b", "a"],
        out="records",
        label="ward",
        verdicts_in_meta=False,
        seed=5,
    ),
}


def recipe(aggregator: RobustAggregator, script: Path) -> Any:
    script.write_text("")
    return NumpyFedAvgRecipe(
        name="job", model=[1.0, 2.0], min_clients=2, num_rounds=1, train_script=str(script), aggregator=aggregator
    )


def state(aggregator: RobustAggregator) -> Any:
    names = ("lr", "weight_cap", "buffers", "buffer_policy", "clients", "out", "label", "verdicts_in_meta", "seed")
    table = settings(aggregator._coordinator, aggregator.label, aggregator.clients)
    return table, {name: getattr(aggregator, name) for name in names}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_exported_job_builds_the_same_aggregator(name: str, tmp_path: Path) -> None:
    aggregator = AGGREGATORS[name]
    use_installed(recipe(aggregator, tmp_path / "client.py")).export(str(tmp_path / "jobs"))
    config = json.loads(next((tmp_path / "jobs").rglob("config_fed_server.json")).read_text())
    found = config["workflows"][0]["args"]["aggregator"]
    assert found["path"] == "bezoar.integrations.nvflare.aggregator.RobustAggregator"
    again = instantiate_class(found["path"], found["args"])
    assert state(again) == state(aggregator)
    assert again._coordinator == aggregator._coordinator


def test_a_job_carries_no_copy_if_told_so(tmp_path: Path) -> None:
    for told in (False, True):
        job = recipe(RobustAggregator(Mean()), tmp_path / "client.py")
        if told:
            assert use_installed(use_installed(job)) is job
        job.export(str(tmp_path / str(told)))
    assert list((tmp_path / "False").rglob("*/custom/bezoar/**/*.py"))
    assert not list((tmp_path / "True").rglob("*/custom/bezoar"))
    fed = FedJob(name="other")
    fed.set_app_packages(["mine"])
    assert use_installed(fed).job.app_packages == ["bezoar", "mine"]
    with pytest.raises(ConfigError, match="FedJob"):
        use_installed("job")


def test_a_client_s_error_ends_a_job_no_more_if_told_so(tmp_path: Path) -> None:
    job = recipe(RobustAggregator(Mean()), tmp_path / "client.py")
    assert forgive_errors(job) is job
    job.export(str(tmp_path / "jobs"))
    config = json.loads(next((tmp_path / "jobs").rglob("config_fed_server.json")).read_text())
    assert config["workflows"][0]["args"]["ignore_result_error"] is True
    older = FedJob(name="other")
    with pytest.raises(ConfigError, match="no workflow"):
        forgive_errors(older)
    older.to_server(ScatterAndGather(min_clients=2, num_rounds=1))
    forgive_errors(older).export_job(str(tmp_path / "older"))
    config = json.loads(next((tmp_path / "older").rglob("config_fed_server.json")).read_text())
    assert config["workflows"][0]["args"]["ignore_result_error"] is True
    with pytest.raises(ConfigError, match="FedJob"):
        forgive_errors(None)


def test_the_extra_is_named_where_nvflare_is_absent() -> None:
    code = "import sys; sys.modules['nvflare'] = None\nimport bezoar.integrations.nvflare"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "pip install 'bezoar[nvflare]'" in done.stderr
