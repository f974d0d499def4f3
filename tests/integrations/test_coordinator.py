from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.aggregation import NNM, Clip, FLTrust, FoolsGold, Krum, Mean, Median, TrimmedMean
from bezoar.errors import ConfigError
from bezoar.experiments.defence import Defence
from bezoar.integrations.coordinator import SKETCH, Coordinator, Memory, Reply, Status, as_defence
from bezoar.servers import SGD, FetchSGD, SparseFed

D = {"w": (4, 5), "b": (5,)}


def model(seed: int, size: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: (size * rng.normal(size=shape)).astype(np.float32) for name, shape in D.items()}


def replies(n: int, **changed: dict[str, Any]) -> list[Reply]:
    start = model(0)
    sent = [{name: start[name] - 0.1 * model(i + 1)[name] for name in D} for i in range(n)]
    return [Reply(i, {**sent[i], **changed.get(f"c{i}", {})}) for i in range(n)]


def flat(arrays: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([arrays[name].reshape(-1) for name in D]).astype(np.float64)


def statuses(outcome: Any) -> list[int]:
    return [int(v.status) for v in outcome.verdicts]


@pytest.mark.parametrize(
    "rule", [Mean(), Median(), TrimmedMean(f=2), NNM(f=2) >> TrimmedMean(f=2), Clip(0.1) >> Mean()]
)
def test_the_model_moves_by_the_rule_s_aggregate_of_updates(rule: Any) -> None:
    sent = replies(7)
    outcome = Coordinator(as_defence(rule)).play(1, model(0), sent, Memory())
    updates = torch.tensor(np.stack([flat(model(0)) - flat(dict(r.arrays)) for r in sent]))
    np.testing.assert_allclose(flat(outcome.arrays), flat(model(0)) - rule(updates).numpy(), atol=1e-6)
    assert outcome.skipped is None
    assert {name: (a.shape, a.dtype) for name, a in outcome.arrays.items()} == {
        name: (shape, np.dtype(np.float32)) for name, shape in D.items()
    }


def test_the_order_of_replies_changes_no_bit() -> None:
    coordinator = Coordinator(as_defence(NNM(f=2) >> TrimmedMean(f=2)))
    sent = replies(9)
    one = coordinator.play(1, model(0), sent, Memory())
    two = coordinator.play(1, model(0), sent[::-1], Memory())
    for name in D:
        np.testing.assert_array_equal(one.arrays[name], two.arrays[name])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_row_that_is_not_finite_is_one_of_the_f(bad: float) -> None:
    rule = TrimmedMean(f=2)
    sent = replies(7, c3={"b": np.full(5, bad, np.float32)})
    outcome = Coordinator(as_defence(rule)).play(1, model(0), sent, Memory())
    rest = [r for r in sent if r.client != 3]
    expected = Coordinator(as_defence(TrimmedMean(f=1))).play(1, model(0), rest, Memory())
    if bad == 3e38:  # finite: the rule deals with it
        assert outcome.skipped is None
        assert np.abs(flat(outcome.arrays)).max() < 10
    else:
        assert statuses(outcome) == [0, 0, 0, Status.EXCLUDED, 0, 0, 0]
        np.testing.assert_array_equal(flat(outcome.arrays), flat(expected.arrays))


def test_more_bad_replies_than_f_keep_the_model_and_say_so() -> None:
    sent = replies(
        7, c1={"w": np.zeros(3, np.float32)}, c2={"extra": np.zeros(1)}, c4={"b": np.full(5, np.nan, np.float32)}
    )
    before = Memory(last={"aggregate": torch.ones(25)})
    outcome = Coordinator(as_defence(TrimmedMean(f=2))).play(4, model(0), sent, before)
    assert outcome.skipped is not None
    assert "at most 2" in outcome.skipped
    assert outcome.memory == before
    np.testing.assert_array_equal(flat(outcome.arrays), flat(model(0)))
    assert statuses(outcome) == [0, 2, 2, 0, 2, 0, 0]
    reasons = {v.client: v.reason for v in outcome.verdicts}
    assert "shape [3]" in reasons[1]
    assert "'extra' unknown" in reasons[2]
    assert reasons[4] == "not finite"


def test_two_of_two_bad_are_survived() -> None:
    sent = replies(7, c1={"w": np.zeros(3, np.float32)}, c4={"b": np.full(5, np.nan, np.float32)})
    outcome = Coordinator(as_defence(TrimmedMean(f=2))).play(4, model(0), sent, Memory())
    rest = [r for r in sent if r.client not in (1, 4)]
    mean = Coordinator(as_defence(Mean())).play(4, model(0), rest, Memory())
    assert outcome.skipped is None
    np.testing.assert_allclose(flat(outcome.arrays), flat(mean.arrays), atol=1e-6)


def test_nobody_answers_well() -> None:
    coordinator = Coordinator(as_defence(Mean()))
    assert coordinator.play(1, model(0), [], Memory(), missing=[0, 1]).skipped == "no replies"
    bad = [Reply(0, {}), Reply(1, {}, flaw="two records")]
    outcome = coordinator.play(1, model(0), bad, Memory(), failed={7: "out of memory"})
    assert outcome.skipped == "none of 2 replies is usable"
    assert statuses(outcome) == [2, 2, Status.FAILED]


def test_too_few_replies_for_f_skip_the_round() -> None:
    outcome = Coordinator(as_defence(Krum(f=2))).play(1, model(0), replies(5), Memory())
    assert outcome.skipped is not None
    assert "f=2 is out of range for n=5" in outcome.skipped
    with pytest.raises(ConfigError, match="out of range"):
        Coordinator(as_defence(Krum(f=2))).check(5)


def test_a_rule_s_choice_is_flagged_and_is_no_fault() -> None:
    outcome = Coordinator(as_defence(Krum(f=1))).play(1, model(0), replies(6), Memory())
    assert sorted(statuses(outcome)) == [0, 1, 1, 1, 1, 1]
    assert outcome.record["excluded"] == 0


def test_claims_are_ignored_unless_the_rule_uses_them_and_then_capped() -> None:
    sent = replies(5)
    liar = [replace(r, weight=1e12 if r.client == 2 else 10.0) for r in sent]
    plain = Coordinator(as_defence(Mean()))
    np.testing.assert_array_equal(
        flat(plain.play(1, model(0), sent, Memory()).arrays), flat(plain.play(1, model(0), liar, Memory()).arrays)
    )
    weighted = Coordinator(as_defence(Mean(weighted=True)), weight_cap=3.0).play(1, model(0), liar, Memory())
    weights = np.array([1, 1, 3, 1, 1]) / 7
    expected = flat(model(0)) - sum(
        w * (flat(model(0)) - flat(dict(r.arrays))) for w, r in zip(weights, sent, strict=True)
    )
    np.testing.assert_allclose(flat(weighted.arrays), expected, atol=1e-6)


@pytest.mark.parametrize("claim", [float("nan"), -1.0, float("inf")])
def test_a_claim_that_is_no_weight_excludes_its_client(claim: float) -> None:
    sent = [replace(r, weight=claim if r.client == 2 else 10.0) for r in replies(5)]
    outcome = Coordinator(as_defence(Mean(weighted=True))).play(1, model(0), sent, Memory())
    assert statuses(outcome) == [0, 0, 2, 0, 0]
    assert np.isfinite(flat(outcome.arrays)).all()


def with_buffers(var: float, steps: int) -> dict[str, Any]:
    return {
        "bn.weight": np.ones(2, np.float32),
        "bn.running_var": np.full(2, var, np.float32),
        "bn.num_batches_tracked": np.asarray(steps),
    }


@pytest.mark.parametrize(("policy", "var", "steps"), [("median", 3.0, 12), ("keep", 1.0, 0), ("rule", None, 0)])
def test_buffers_follow_their_policy(policy: Any, var: float | None, steps: int) -> None:
    sent = [Reply(i, with_buffers(v, 10 + i)) for i, v in enumerate([1.0, 2.0, 3.0, 4.0, 5.0])]
    sent += [Reply(5, with_buffers(-1e30, -5)), Reply(6, with_buffers(1e30, 99))]
    outcome = Coordinator(as_defence(TrimmedMean(f=1)), buffer_policy=policy).play(
        1, with_buffers(1.0, 0), sent, Memory()
    )
    assert outcome.arrays["bn.num_batches_tracked"] == steps
    assert outcome.arrays["bn.num_batches_tracked"].dtype == np.int64
    if var is None:  # the trimmed mean of 1 .. 5
        np.testing.assert_allclose(outcome.arrays["bn.running_var"], 3.0, atol=1e-5)
    else:
        np.testing.assert_array_equal(outcome.arrays["bn.running_var"], np.full(2, var, np.float32))
    assert outcome.arrays["bn.running_var"].dtype == np.float32


def test_servers_and_rules_remember_from_round_to_round() -> None:
    coordinator = Coordinator(Defence(FoolsGold(), SparseFed(k=6, momentum=0.9)))
    arrays, memory = model(0), Memory()
    for number in (1, 2, 3):
        sent = [Reply(i, {n: arrays[n] - 0.1 * model(10 * number + i)[n] for n in D}) for i in range(6)]
        outcome = coordinator.play(number, arrays, sent, memory)
        assert int((flat(outcome.arrays) != flat(arrays)).sum()) <= 6
        arrays, memory = outcome.arrays, outcome.memory
    assert memory.server.keys() == {"momentum", "error"}
    assert memory.rule
    again = Memory.of(memory.tensors())
    assert again.tensors().keys() == memory.tensors().keys()
    one, two = (coordinator.play(4, arrays, sent, m) for m in (memory, again))
    np.testing.assert_array_equal(flat(one.arrays), flat(two.arrays))


def test_sketches_give_the_step_of_fetchsgd_on_the_mean() -> None:
    server = FetchSGD(k=3, rows=3, columns=40, momentum=0.0)
    coordinator = Coordinator(as_defence(Mean(), server), sketched=True)
    start, sent = model(0), replies(5)
    sketch = server.sketch(25)
    updates = [torch.from_numpy(flat(start) - flat(dict(r.arrays))).float() for r in sent]
    tables = [Reply(i, {SKETCH: sketch.insert(u).numpy()}) for i, u in enumerate(updates)]
    outcome = coordinator.play(1, start, tables, Memory())
    step = server.step(torch.stack(updates).mean(0), 1.0, {}).dense(25).numpy()
    np.testing.assert_allclose(flat(outcome.arrays), flat(start) - step, atol=1e-5)
    bad = [*tables[:4], Reply(4, {SKETCH: np.full((3, 40), np.nan, np.float32)})]
    assert statuses(coordinator.play(1, start, bad, Memory())) == [0, 0, 0, 0, 2]


def test_the_server_s_own_update_for_fltrust() -> None:
    def root(number: int, arrays: Any) -> Any:
        assert number == 1
        return {name: arrays[name] - 0.1 * model(3)[name] for name in D}

    coordinator = Coordinator(as_defence(FLTrust()), root=root)
    sent = replies(5)
    outcome = coordinator.play(1, model(0), sent, Memory())
    updates = torch.tensor(np.stack([flat(model(0)) - flat(dict(r.arrays)) for r in sent]))
    from bezoar.aggregation import Context

    expected = FLTrust().aggregate(updates, context=Context(1, root_gradient=0.1 * torch.tensor(flat(model(3)))))
    np.testing.assert_allclose(flat(outcome.arrays), flat(model(0)) - expected.vector.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: as_defence(Clip(5.0)), "no complete defence"),
        (lambda: as_defence(7), "a defence is a rule"),
        (lambda: as_defence("medain"), "median"),
        (lambda: Coordinator(as_defence(FLTrust())), "root="),
        (lambda: Coordinator(as_defence(Mean()), lr=0.0), "lr must be"),
        (lambda: Coordinator(as_defence(Mean()), weight_cap=0.5), "weight_cap"),
        (lambda: Coordinator(as_defence(Mean()), buffer_policy="mean"), "buffer_policy"),  # type: ignore[arg-type]
        (lambda: Coordinator(as_defence(Mean()), sketched=True), "FetchSGD only"),
        (lambda: Coordinator(as_defence(Median(), FetchSGD(k=2)), sketched=True), "can not work on sketches"),
    ],
)
def test_settings_that_can_not_work_are_refused_at_once(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_presets_keep_their_servers_and_rules_average() -> None:
    assert isinstance(as_defence({"preset": "sparsefed", "k": 5}).server, SparseFed)
    assert as_defence(Mean()).server == SGD(momentum=0.0)
    assert as_defence("median", SGD(momentum=0.5)).server == SGD(momentum=0.5)


@given(st.integers(0, 10**6), st.floats(-1e30, 1e30), st.integers(0, 2))
def test_f_liars_never_move_the_model_far(seed: int, size: float, liars: int) -> None:
    sent = [
        Reply(i, {n: (model(0)[n] - (size if i < liars else 0.1) * model(seed + i)[n]).astype(np.float32) for n in D})
        for i in range(8)
    ]
    outcome = Coordinator(as_defence(NNM(f=2) >> TrimmedMean(f=2))).play(1, model(0), sent, Memory())
    assert outcome.skipped is None
    assert np.abs(flat(outcome.arrays) - flat(model(0))).max() < 1
