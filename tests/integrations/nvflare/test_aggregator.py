"""The aggregator by hand: models as clients send them, honest and hostile, without a simulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nvflare")

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from bezoar.aggregation import FABA, NNM, Clip, FLTrust, FoolsGold, Krum, Mean, Median, TrimmedMean
from bezoar.errors import BezoarError, ConfigError
from bezoar.integrations.coordinator import Coordinator, Memory, Reply, as_defence
from bezoar.integrations.nvflare import META, RobustAggregator, Status
from bezoar.servers import SGD, FetchSGD, SparseFed

SHAPES = {"w": (4, 5), "b": (5,), "bn.running_mean": (5,), "bn.num_batches_tracked": ()}
FULL, DIFF = ParamsType.FULL, ParamsType.DIFF
Params = dict[str, Any]


def model(seed: int, kind: str = "numpy") -> Params:
    rng = np.random.default_rng(seed)
    found: Params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    found["bn.num_batches_tracked"] = np.asarray(rng.integers(10), np.int64)
    return {name: torch.from_numpy(value) for name, value in found.items()} if kind == "torch" else found


def trained(seed: int, kind: str = "numpy", size: float = 0.1) -> Params:
    """What a client that starts from ``model(0)`` might end with."""
    start, move = model(0), model(1000 + seed)
    found = {name: (start[name] + size * move[name]).astype(start[name].dtype) for name in start}
    found["bn.num_batches_tracked"] = start["bn.num_batches_tracked"] + seed
    return {name: torch.from_numpy(np.asarray(value)) for name, value in found.items()} if kind == "torch" else found


def diff(params: Params, start: Params) -> Params:
    """As NVFlare's client API makes differences, scalars that are no arrays any more included."""
    return {name: params[name] - start[name] for name in start}


def site(i: int, params: Any, kind: Any = FULL, **meta: Any) -> FLModel:
    return FLModel(params_type=kind, params=params, meta={"client_name": f"site-{i + 1}", **meta})


def cohort(n: int, kind: Any = FULL, library: str = "numpy") -> list[FLModel]:
    start = model(0, library)
    sent = [trained(i, library) for i in range(n)]
    return [site(i, diff(p, start) if kind == DIFF else p, kind) for i, p in enumerate(sent)]


def answer(aggregator: RobustAggregator, sent: list[Any], start: Params | None = None) -> FLModel:
    if start is not None:
        aggregator.begin(start)
    aggregator.reset_stats()
    for one in sent:
        aggregator.accept_model(one)
    return aggregator.aggregate_model()


def applied(start: Params, result: FLModel) -> Params:
    """The next model as NVFlare's controllers make it."""
    moved: Params = FLModelUtils.update_model(FLModel(params_type=FULL, params=dict(start)), result).params
    # Sums of arrays without dimensions are scalars.
    return {name: np.asarray(value) if isinstance(value, np.generic) else value for name, value in moved.items()}


def same(one: Params, two: Params) -> None:
    assert set(one) == set(two)
    for name, value in one.items():
        assert type(value) is type(two[name]), name
        assert value.dtype == two[name].dtype, name
        np.testing.assert_array_equal(np.asarray(value), np.asarray(two[name]), err_msg=name)


DEFENCES: list[tuple[Any, Any]] = [
    (Mean(), None),
    (NNM(f=1) >> TrimmedMean(f=1), SGD(momentum=0.9)),
    (Clip(0.2) >> Mean(), SparseFed(k=3)),
    (Clip(0.2) >> Mean(), FetchSGD(k=3, rows=3, columns=64)),
    (FoolsGold(), None),
    ("sparsefed", None),
    ({"preset": "trimmed-mean", "f": 1}, {"kind": "sgd", "momentum": 0.5}),
]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("rule", "server"), DEFENCES)
def test_models_and_differences_give_the_same_bits_over_rounds(rule: Any, server: Any, library: str) -> None:
    whole, steps, blind = (RobustAggregator(rule, server) for _ in range(3))
    one = two = three = model(0, library)
    for number in range(3):
        sent = [trained(10 * number + i, library) for i in range(5)]
        full = answer(whole, [site(i, p) for i, p in enumerate(sent)], one)
        moved = answer(steps, [site(i, diff(p, two), DIFF) for i, p in enumerate(sent)], two)
        # Nobody tells this one what the model is.
        alone = answer(blind, [site(i, diff(p, three), DIFF) for i, p in enumerate(sent)])
        assert (full.params_type, moved.params_type, alone.params_type) == (FULL, DIFF, DIFF)
        one, two, three = applied(one, full), applied(two, moved), applied(three, alone)
        for name in ("w", "b", "bn.num_batches_tracked"):
            np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(two[name]))
            np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(three[name]))
        np.testing.assert_allclose(np.asarray(one["bn.running_mean"]), np.asarray(two["bn.running_mean"]), rtol=1e-6)
        np.testing.assert_allclose(np.asarray(one["bn.running_mean"]), np.asarray(three["bn.running_mean"]), rtol=1e-6)
    assert all(isinstance(value, torch.Tensor if library == "torch" else np.ndarray) for value in one.values())
    assert np.abs(np.asarray(one["w"]) - np.asarray(model(0)["w"])).max() > 0


def test_the_model_is_what_the_coordinator_makes() -> None:
    rule = NNM(f=1) >> TrimmedMean(f=1)
    sent = [trained(i) for i in range(5)]
    found = answer(RobustAggregator(rule), [site(i, p) for i, p in enumerate(sent)], model(0))
    replies = [Reply(i, {n: np.asarray(v) for n, v in p.items()}) for i, p in enumerate(sent)]
    same(found.params, Coordinator(as_defence(rule)).play(1, model(0), replies, Memory()).arrays)


@given(st.permutations(range(6)), st.sampled_from([FULL, DIFF]))
@settings(max_examples=15, deadline=None)
def test_who_answers_first_changes_no_bit(order: list[int], kind: Any) -> None:
    sent = cohort(6, kind)
    one = answer(RobustAggregator(FoolsGold()), sent, model(0))
    two = answer(RobustAggregator(FoolsGold()), [sent[i] for i in order], model(0))
    same(one.params, two.params)
    assert one.meta == two.meta


def test_names_become_numbers_in_natural_order_and_keep_them() -> None:
    aggregator = RobustAggregator(Mean())
    answer(aggregator, [site(i, trained(i)) for i in (10, 1, 9)], model(0))
    assert [v.client for v in aggregator.verdicts] == [0, 1, 2]
    assert list(answer(aggregator, cohort(11)).meta[META]["verdicts"])[:4] == ["site-2", "site-10", "site-11", "site-1"]
    known = RobustAggregator(Mean(), clients=["b", "a"])
    found = answer(known, [FLModel(params=trained(i), meta={"client_name": n}) for i, n in enumerate("cab")], model(0))
    assert list(found.meta[META]["verdicts"]) == ["b", "a", "c"]


HOSTILE: dict[str, Any] = {
    "missing name": {k: v for k, v in trained(1).items() if k != "b"},
    "extra name": {**trained(1), "x": np.zeros(3, np.float32)},
    "shape": {**trained(1), "b": np.zeros(6, np.float32)},
    "transposed": {**trained(1), "w": np.zeros((5, 4), np.float32)},
    "type": {**trained(1), "b": np.zeros(5, np.float64)},
    "integers": {**trained(1), "b": np.zeros(5, np.int32)},
    "complex": {**trained(1), "b": np.zeros(5, np.complex64)},
    "objects": {**trained(1), "b": np.array([None] * 5)},
    "texts": {**trained(1), "b": np.array(list("abcde"))},
    "nan": {**trained(1), "b": np.full(5, np.nan, np.float32)},
    "infinity": {**trained(1), "w": np.full((4, 5), -np.inf, np.float32)},
    "none": {**trained(1), "b": None},
    "text": {**trained(1), "b": "0" * 20},
    "list": {**trained(1), "b": [0.0] * 5},
    "bytes": {**trained(1), "b": b"\x93NUMPY"},
    "not a mapping": np.zeros(25, np.float32),
    "a list": [1, 2],
    "a string": "weights",
    "numbers as names": {1: np.zeros(3, np.float32)},
    "huge": {**trained(1), "b": np.broadcast_to(np.float32(1), (10**6, 10**6))},
    "sparse": {**trained(1), "b": torch.zeros(5).to_sparse()},
    "no memory": {**trained(1), "b": torch.zeros(5, device="meta")},
    "half": {**trained(1), "b": torch.zeros(5, dtype=torch.float16)},
    "gradient": {**trained(1), "b": torch.full((5,), torch.nan, requires_grad=True)},
    "empty": {},
}


@pytest.mark.parametrize("kind", [FULL, DIFF])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_bad_model_is_one_of_the_f(what: str, kind: Any) -> None:
    sent = cohort(5, kind)
    sent[2] = site(2, HOSTILE[what], kind)
    aggregator = RobustAggregator(TrimmedMean(f=1))
    found = answer(aggregator, sent, model(0))
    assert [v.status for v in aggregator.verdicts] == [0, 0, Status.EXCLUDED, 0, 0]
    said = found.meta[META]["verdicts"]["site-3"]
    assert said.startswith("excluded: ")
    assert len(said) < 300
    # With one known to be bad, the rest is aggregated as with f=0: their mean.
    rest = [trained(i)["w"].astype(np.float64) for i in (0, 1, 3, 4)]
    np.testing.assert_allclose(applied(model(0), found)["w"], np.mean(rest, axis=0), atol=1e-6)


def test_things_that_are_no_models_are_bad_too() -> None:
    aggregator = RobustAggregator(Median())
    odd: list[Any] = [None, "model", FLModel(metrics={"a": 1.0}, meta={"client_name": 7})]
    found = answer(aggregator, [*cohort(5), odd[0]], model(0))
    assert found.meta[META]["verdicts"]["unknown"].startswith("excluded: ")
    found = answer(aggregator, [*cohort(5), *odd])
    assert found.meta[META]["verdicts"]["unknown"] == "excluded: 3 models in one round"
    assert found.meta[META]["skipped"] is None


@pytest.mark.parametrize("kind", [FULL, DIFF])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_more_bad_models_than_f_keep_the_old_one(kind: Any, library: str) -> None:
    sent = cohort(5, kind, library)
    for i in (1, 3):
        sent[i] = site(i, {**sent[i].params, "b": np.full(5, np.nan, np.float32)}, kind)
    aggregator = RobustAggregator(TrimmedMean(f=1), SGD(momentum=0.9))
    found = answer(aggregator, sent, model(0, library))
    assert "2 of 5 updates" in found.meta[META]["skipped"]
    assert found.params_type == kind
    same(applied(model(0, library), found), model(0, library))
    assert answer(aggregator, cohort(5, kind, library), model(0, library)).meta[META]["skipped"] is None


def test_rounds_that_nobody_answers_keep_the_model() -> None:
    aggregator = RobustAggregator(Mean())
    nothing = answer(aggregator, [])
    assert nothing.params_type == DIFF
    same(applied(model(0), nothing), model(0))
    known = answer(aggregator, [], model(0))
    same(applied(model(0), known), model(0))
    assert known.meta[META] == {"round": 2, "skipped": "no replies", "verdicts": {}}


def test_one_client_twice_is_one_flaw() -> None:
    aggregator = RobustAggregator(TrimmedMean(f=1))
    found = answer(aggregator, [*cohort(5), site(4, trained(9))], model(0))
    assert found.meta[META]["verdicts"]["site-5"] == "excluded: 2 models in one round"


def test_clients_may_mix_models_and_differences() -> None:
    full, steps = cohort(5), cohort(5, DIFF)
    one = answer(RobustAggregator(TrimmedMean(f=1)), full, model(0))
    two = answer(RobustAggregator(TrimmedMean(f=1)), [*full[:3], *steps[3:]], model(0))
    np.testing.assert_array_equal(one.params["w"], two.params["w"])
    assert two.params_type == FULL
    three = answer(RobustAggregator(TrimmedMean(f=1)), [*full[:2], *steps[2:]], model(0))
    assert three.params_type == DIFF
    np.testing.assert_array_equal(applied(model(0), three)["w"], one.params["w"])


def test_a_model_that_is_called_a_difference_is_an_outlier_only() -> None:
    sent = cohort(5, DIFF)
    sent[0] = site(0, trained(0, size=100.0), DIFF)
    found = answer(RobustAggregator(FABA(f=1)), sent, model(0))
    assert found.meta[META]["verdicts"]["site-1"].startswith("excluded: farthest")
    assert np.abs(found.params["w"]).max() < 1


def test_claimed_weights_count_only_where_they_are_asked_for_and_are_capped() -> None:
    sent = cohort(5)
    for i, one in enumerate(sent):
        one.meta["NUM_STEPS_CURRENT_ROUND"] = 1e12 if i == 0 else 10
    plain = answer(RobustAggregator(Mean()), sent, model(0))
    np.testing.assert_allclose(plain.params["w"], np.mean([trained(i)["w"] for i in range(5)], axis=0), atol=1e-6)
    capped = answer(RobustAggregator(Mean(weighted=True), weight_cap=2.0), sent, model(0))
    expected = np.average([trained(i)["w"] for i in range(5)], axis=0, weights=[20, 10, 10, 10, 10])
    np.testing.assert_allclose(capped.params["w"], expected, atol=1e-6)


@pytest.mark.parametrize("weight", [None, "many", -1, 0, float("nan"), 10**400, [1]], ids=lambda w: type(w).__name__)
def test_nonsense_for_a_weight_raises_nothing(weight: Any) -> None:
    sent = cohort(5)
    for i, one in enumerate(sent):
        one.meta["NUM_STEPS_CURRENT_ROUND"] = weight if i == 0 else 10
    found = answer(RobustAggregator(Mean(weighted=True)), sent, model(0))
    assert np.isfinite(found.params["w"]).all()
    assert found.meta[META]["verdicts"]["site-1"].startswith(("excluded", "flagged"))


def test_metrics_are_medians_of_what_most_report() -> None:
    sent = cohort(5)
    for i, one in enumerate(sent):
        one.metrics = {"accuracy": 1e9 if i == 0 else 0.5 + i / 100, "text": "x", f"own {i}": 1.0}
    assert answer(RobustAggregator(Mean()), sent, model(0)).metrics == {"accuracy": 0.53}
    sent[0].metrics = {"accuracy": float("nan"), 3: 1.0, "big": 10**400}
    assert answer(RobustAggregator(Mean()), sent, model(0)).metrics == {"accuracy": 0.525}


@pytest.mark.parametrize("policy", ["median", "keep", "rule"])
@pytest.mark.parametrize("kind", [FULL, DIFF])
def test_buffers_follow_the_policy(policy: Any, kind: Any) -> None:
    found = applied(model(0), answer(RobustAggregator(Mean(), buffer_policy=policy), cohort(5, kind), model(0)))
    rows = [trained(i) for i in range(5)]
    start = model(0)
    count = (
        start["bn.num_batches_tracked"] if policy == "keep" or policy == "rule" else rows[2]["bn.num_batches_tracked"]
    )
    assert found["bn.num_batches_tracked"] == count
    assert found["bn.num_batches_tracked"].dtype == np.int64
    means = np.stack([row["bn.running_mean"] for row in rows])
    expected = {"median": np.median(means, axis=0), "keep": start["bn.running_mean"], "rule": means.mean(0)}[policy]
    np.testing.assert_allclose(found["bn.running_mean"], expected, atol=1e-6)


def test_bfloat16_models_stay_what_they_are() -> None:
    start = {"w": torch.zeros(3, dtype=torch.bfloat16)}
    sent = [site(i, {"w": torch.full((3,), float(i), dtype=torch.bfloat16)}) for i in range(3)]
    found = answer(RobustAggregator(Median()), sent, start)
    assert found.params["w"].dtype == torch.bfloat16
    assert found.params["w"].tolist() == [1.0, 1.0, 1.0]


def test_nothing_that_came_is_changed() -> None:
    sent, start = cohort(5), model(0)
    answer(RobustAggregator(Mean()), sent, start)
    same(start, model(0))
    for i, one in enumerate(sent):
        same({n: np.asarray(v) for n, v in one.params.items()}, {n: np.asarray(v) for n, v in trained(i).items()})


def test_without_a_model_what_most_clients_send_says_what_it_looks_like() -> None:
    sent = cohort(5, DIFF)
    sent[0] = site(0, {"v": np.zeros(2, np.float32)}, DIFF)
    aggregator = RobustAggregator(TrimmedMean(f=1))
    found = answer(aggregator, sent)
    assert found.meta[META]["verdicts"]["site-1"].startswith("excluded: wrong names")
    torn = [site(i, {f"v{i // 2}": np.zeros(2, np.float32)}, DIFF) for i in range(4)]
    other = RobustAggregator(TrimmedMean(f=1))
    nothing = answer(other, torn)
    assert "more than half" in nothing.meta[META]["skipped"]
    assert nothing.params == {}
    assert "more than half" in answer(other, [site(0, {"v": np.zeros(2, np.int64)}, DIFF)] * 2).meta[META]["skipped"]
    # Once known, it stays: later rounds can not be voted over.
    assert answer(aggregator, [site(i, {"v": np.zeros(2, np.float32)}, DIFF) for i in range(5)]).meta[META]["skipped"]


def test_whole_models_without_knowing_the_own_one_are_an_error_of_the_set_up() -> None:
    with pytest.raises(BezoarError, match=r"begin\(\)"):
        answer(RobustAggregator(Mean()), cohort(3))
    # Not one that a bad model can cause.
    assert answer(RobustAggregator(Mean()), [site(0, "x"), site(1, None, None)]).meta[META]["skipped"]


def test_whole_models_in_a_cohort_that_sends_differences_are_excluded_where_no_model_is_known() -> None:
    aggregator = RobustAggregator(TrimmedMean(f=1))
    found = answer(aggregator, [*cohort(4, DIFF), site(4, trained(4))])
    assert "a whole model" in found.meta[META]["verdicts"]["site-5"]
    assert found.meta[META]["skipped"] is None


@pytest.mark.parametrize("server", [None, SparseFed(k=2)])
def test_what_needs_the_model_says_so(server: Any) -> None:
    crfl = RobustAggregator({"preset": "crfl", "radius": 1.0, "std": 0.0}, server)
    with pytest.raises(ConfigError, match="needs the global model"):
        answer(crfl, cohort(3, DIFF))
    assert answer(crfl, cohort(3, DIFF), model(0)).meta[META]["skipped"] is None


class _Trusting(RobustAggregator):
    def train_root(self, number: int, arrays: Any) -> Any:
        return trained(number)


def test_a_subclass_trains_for_fltrust() -> None:
    with pytest.raises(ConfigError, match="root="):
        RobustAggregator(FLTrust())
    found = answer(_Trusting(FLTrust()), [site(1, trained(1)), site(2, trained(2, size=-0.1))], model(0))
    assert found.meta[META]["verdicts"] == {"site-2": "kept", "site-3": "flagged: the rule gave it no weight"}
    np.testing.assert_allclose(found.params["w"], trained(1)["w"], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "krumm"}, "krum"),
        ({"rule": Clip(1.0)}, "Mean"),
        ({"rule": 3}, "a defence is"),
        ({"rule": Mean(), "lr": 0}, "lr"),
        ({"rule": Mean(), "weight_cap": 0.5}, "weight_cap"),
        ({"rule": Mean(), "buffer_policy": "mean"}, "buffer_policy"),
        ({"rule": Mean(), "server": "sdg"}, "sgd"),
        ({"rule": Mean(), "clients": ["a", "a"]}, "different"),
        ({"rule": Krum(f=1), "clients": ["a", "b", "c"]}, "n"),
    ],
)
def test_settings_that_can_not_work_fail_when_they_are_made(arguments: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RobustAggregator(**arguments)


def test_a_model_that_is_none_is_an_error_of_the_set_up() -> None:
    with pytest.raises(ConfigError, match="global model"):
        RobustAggregator(Mean()).begin({"layer": [np.zeros(3)]})
    with pytest.raises(ConfigError, match="no parameters"):
        RobustAggregator(Mean()).begin({"n": np.zeros(3, np.int64)})


def test_verdicts_stay_at_home_if_asked_to() -> None:
    aggregator = RobustAggregator(Mean(), verdicts_in_meta=False)
    assert answer(aggregator, cohort(3), model(0)).meta == {}
    assert len(aggregator.verdicts) == 3


# With NVFlare's contexts


def context(**props: Any) -> FLContext:
    found = FLContext()
    for key, value in props.items():
        found.set_prop(key, value, private=True, sticky=False)
    return found


def asked(client: str, shareable: Any, **props: Any) -> FLContext:
    found, peer = context(**{AppConstants.TRAIN_SHAREABLE: shareable, **props}), FLContext()
    peer.set_prop("__identity_name__", client, private=False, sticky=False)
    found.set_peer_context(peer)
    return found


def test_the_workflow_s_events_tell_the_model_and_who_is_asked() -> None:
    task = FLModelUtils.to_shareable(FLModel(params_type=FULL, params=model(0)))
    aggregator = RobustAggregator(TrimmedMean(f=1))
    for i in range(6):
        aggregator.handle_event("_before_train_task", asked(f"site-{i + 1}", task))
    found = answer(aggregator, cohort(5, DIFF))
    assert found.meta[META]["verdicts"]["site-6"] == "missing: no answer"
    expected = answer(RobustAggregator(TrimmedMean(f=1)), cohort(5, DIFF), model(0))
    same(found.params, expected.params)
    aggregator.handle_event("_before_train_task", asked("site-1", None))  # Said, and survived.


def test_the_context_s_global_model_and_round_are_used() -> None:
    aggregator = RobustAggregator(Mean())
    learnable = make_model_learnable(model(0), {})
    aggregator.fl_ctx = context(**{AppConstants.GLOBAL_MODEL: learnable, AppConstants.CURRENT_ROUND: 7})
    found = answer(aggregator, cohort(3))
    assert found.params_type == FULL
    assert found.meta[META]["round"] == 8
    same(found.params, answer(RobustAggregator(Mean()), cohort(3), model(0)).params)


def test_scatter_and_gather_hands_over_shareables() -> None:
    aggregator = RobustAggregator(TrimmedMean(f=1))
    for i, one in enumerate(cohort(5, DIFF)):
        one.meta = {"client_name": "site-1"}  # what a client writes here is not believed
        shareable = FLModelUtils.to_shareable(one)
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, 3)
        where = asked(f"site-{i + 1}", None, **{AppConstants.CURRENT_ROUND: 3})
        assert aggregator.accept(shareable, where)
    late = FLModelUtils.to_shareable(cohort(1, DIFF)[0])
    late.add_cookie(AppConstants.CONTRIBUTION_ROUND, 2)
    assert not aggregator.accept(late, asked("site-1", None, **{AppConstants.CURRENT_ROUND: 3}))
    damaged = FLModelUtils.to_shareable(cohort(1, DIFF)[0])
    del damaged["DXO"]
    assert aggregator.accept(damaged, asked("site-6", None))
    result = FLModelUtils.from_shareable(aggregator.aggregate(context()))
    aggregator.reset(context())
    assert [said.split(":")[0] for said in result.meta[META]["verdicts"].values()] == ["kept"] * 5 + ["excluded"]


# Records


def test_records_are_a_run_that_reports_read(tmp_path: Path) -> None:
    from bezoar.reports.records import load

    aggregator = RobustAggregator(TrimmedMean(f=1), out=str(tmp_path / "run"), label="hospital")
    start = model(0)
    for number in range(3):
        sent = cohort(5)
        for one in sent:
            one.metrics = {"accuracy": 0.5 + number / 10}
        if number == 1:
            sent[0] = site(0, {})
        start = applied(start, answer(aggregator, sent, start))
    aggregator.close()
    aggregator.close()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["round", "evaluation", "round", "evaluation", "round"]
    assert lines[2]["verdicts"]["site-1"].startswith("excluded: wrong names")
    assert (lines[3]["round"], lines[3]["test_accuracy"]) == (2, 0.7)
    run = load(tmp_path / "run")
    assert run is not None
    again = RobustAggregator(TrimmedMean(f=1), out=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="already holds a run"):
        answer(again, cohort(5), model(0))


def test_records_without_a_known_model(tmp_path: Path) -> None:
    aggregator = RobustAggregator(TrimmedMean(f=1), out=str(tmp_path / "run"))
    answer(aggregator, [])
    answer(aggregator, cohort(5, DIFF))
    aggregator.close()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["rounds"], summary["rounds_skipped"], summary["parameters"]) == (2, 1, 25)
