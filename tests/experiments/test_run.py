from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import bezoar
from bezoar.aggregation import RULES
from bezoar.errors import BezoarError, ConfigError
from bezoar.experiments import run
from bezoar.experiments.records import METRICS, Records, load_tensors, plain, read_summary, save_tensors
from bezoar.experiments.run import Interrupted, distances
from tests.experiments.rules import NAMES
from tests.experiments.tiny import TABLE, tiny


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_and_leaves_its_records(tmp_path: Path) -> None:
    result = run(tiny(rounds=80, attack="none", defence="none"), tmp_path / "run")
    assert result.test_accuracy > 0.7
    assert result.attack_accuracy is None
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"experiment.toml", "metrics.jsonl", "timings.jsonl", "summary.json", "weights.safetensors"}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == result.summary
    assert summary["rounds"] == 80
    assert summary["converged"] is True
    weights, _ = load_tensors(tmp_path / "run" / "weights.safetensors")
    assert same_weights(weights, result.weights)
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["round"] for line in lines if line["kind"] == "round"] == list(range(1, 81))
    assert [line["round"] for line in lines if line["kind"] == "evaluation"] == list(range(4, 81, 4))


def test_same_seed_same_bits_and_other_seed_other_bits() -> None:
    first, again, other = run(tiny()), run(tiny()), run(tiny(seed=4))
    assert same_weights(first.weights, again.weights)
    assert first.rounds == again.rounds
    assert first.evaluations == again.evaluations
    assert not same_weights(first.weights, other.weights)


def test_running_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    run(tiny(rounds=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_metrics_of_an_attacked_run_by_hand() -> None:
    result = run(tiny(rounds=8))
    last = result.evaluations[-1]
    size, aux = 359, 10
    wrong_aux_right = last["test_accuracy"] * size - last["test_accuracy_clean"] * (size - aux)
    assert wrong_aux_right == pytest.approx(round(wrong_aux_right), abs=1e-6)
    assert 0 <= round(wrong_aux_right) <= aux
    impact = last["attack_accuracy"] * aux / (0.1 * 1200)
    assert result.summary["outsized_impact"] == pytest.approx(impact)
    assert all(record["attackers"] <= record["cohort"] == 20 for record in result.rounds)
    assert len({record["attackers"] for record in result.rounds}) > 1


def test_size_of_the_digits_test_set() -> None:
    from bezoar.data import load

    assert len(load("digits").test) == 359


def test_the_twin_shares_cohorts_and_start_and_differs_by_the_attack(tmp_path: Path) -> None:
    result = run(tiny(evaluation__twin=True), tmp_path / "run")
    twin = run(tiny(attack="none"))
    expected = distances(result.weights, twin.weights)
    assert result.summary["distance_l2"] == expected["distance_l2"] > 0
    assert result.summary["distance_l1"] >= result.summary["distance_l2"]
    assert [r["attackers"] for r in result.rounds] == [r["attackers"] for r in twin.rounds]
    assert read_summary(tmp_path / "run" / "twin") is not None


@pytest.mark.parametrize("attack", ["label-flip", "random-direction", "single-step", "pgd"])
@pytest.mark.parametrize("defence", ["none", {"preset": "krum", "f": 5}, {"preset": "median", "radius": 1.0}])
def test_every_attack_meets_every_kind_of_rule(attack: str, defence: Any) -> None:
    table: Any = attack if attack in ("label-flip", "random-direction") else {"kind": attack, "aux": 10}
    result = run(tiny(rounds=3, attack=table, defence=defence))
    assert len(result.rounds) == 3
    assert all(r["skipped"] is None for r in result.rounds)


def test_attack_schedule_and_exact_number_of_attackers() -> None:
    result = run(tiny(adversary={"share": 0.1, "per_round": 3, "start": 3, "stop": 4}, rounds=6))
    assert [r["attackers"] for r in result.rounds] == [3] * 6
    assert [r["attacking"] for r in result.rounds] == [False, False, True, True, False, False]
    clean = run(tiny(adversary={"share": 0.1, "per_round": 3}, attack="none", rounds=2))
    attacked = run(tiny(adversary={"share": 0.1, "per_round": 3, "start": 3}, rounds=2))
    assert same_weights(clean.weights, attacked.weights)


def test_one_local_epoch_on_all_samples_equals_training_client_by_client() -> None:
    one_pass = run(tiny(clients={"kind": "local"}, attack="none", defence={"preset": "clip", "radius": 0.05}))
    one_by_one = run(
        tiny(clients={"kind": "local", "batch_size": 2}, attack="none", defence={"preset": "clip", "radius": 0.05})
    )
    gap = distances(one_pass.weights, one_by_one.weights)["distance_l2"]
    size = torch.cat([w.flatten() for w in one_pass.weights.values()]).norm()
    assert gap < 1e-5 * float(size)


def test_streamed_local_training_equals_kept_rows() -> None:
    clients = {"kind": "local", "epochs": 2, "batch_size": 1}
    kept = run(tiny(clients=clients, rounds=4))
    streamed = run(tiny(clients={**clients, "max_bytes": 1}, rounds=4))
    assert distances(kept.weights, streamed.weights)["distance_l2"] < 1e-5
    with pytest.raises(BezoarError, match="needs blocks"):
        run(tiny(clients={**clients, "max_bytes": 1}, rounds=1, defence="median"))


def test_divergence_is_a_result_not_a_crash() -> None:
    for defence in ("none", {"preset": "sparsefed", "radius": 1e30, "k": "5%"}):
        result = run(tiny(learning_rate={"kind": "constant", "lr": 1e30}, attack="none", defence=defence))
        assert result.summary["converged"] is False
        assert "finite" in result.summary["convergence_note"] or "NaN" in result.summary["convergence_note"]
        assert result.summary["test_accuracy"] is None
        assert math.isnan(result.test_accuracy)


def test_a_cohort_of_attackers_only_is_a_skipped_round() -> None:
    result = run(tiny(adversary={"share": 1.0}, attack="random-direction", rounds=3))
    assert [r["skipped"] is not None for r in result.rounds] == [True] * 3
    assert "all 20 clients of the cohort are malicious" in result.rounds[0]["skipped"]
    assert result.summary["rounds_skipped"] == 3


def test_attackers_that_send_nan_can_not_end_a_run() -> None:
    adversary = {"share": 0.5, "per_round": 10}
    attack = {"kind": "pgd", "aux": 10, "lr": 1e30}
    result = run(tiny(adversary=adversary, attack=attack, rounds=3, defence={"preset": "trimmed-mean", "f": 2}))
    assert all("10 of 20 updates are not finite" in r["skipped"] for r in result.rounds)
    tolerated = run(tiny(adversary=adversary, attack=attack, rounds=3, defence="none"))
    assert [r["excluded"] for r in tolerated.rounds] == [10] * 3
    assert tolerated.summary["test_accuracy"] is not None


def test_dropout_draws_of_a_client_do_not_depend_on_the_others() -> None:
    settings: dict[str, Any] = {
        "model": {"name": "tests.experiments.models:with_dropout"},
        "attack": "none",
        "rounds": 2,
        "defence": {"preset": "clip", "radius": 0.01},
    }
    clients = {"kind": "local", "epochs": 2, "batch_size": 1}
    kept = run(tiny(clients=clients, **settings))
    streamed = run(tiny(clients={**clients, "max_bytes": 1}, **settings))
    assert distances(kept.weights, streamed.weights)["distance_l2"] < 1e-6


@pytest.mark.parametrize("clients", [{"kind": "gradient"}, {"kind": "local", "epochs": 2}])
def test_batch_norm_is_refused_with_advice(clients: Any) -> None:
    with pytest.raises(ConfigError, match=r"BatchNorm1d, which mixes the samples of different clients.*GroupNorm"):
        run(tiny(model={"name": "tests.experiments.models:with_batch_norm"}, clients=clients))


def test_adaptive_clipping_survives_a_rate_of_zero() -> None:
    schedule = {"kind": "piecewise-linear", "points": [[0.0, 0.1], [0.5, 0.0], [1.0, 0.0]]}
    defence = {"preset": "clip", "radius": 1.0, "adaptive_clip": True}
    assert run(tiny(learning_rate=schedule, defence=defence, clients={"kind": "local"})).summary["rounds"] == 12


def test_two_noises_of_a_round_are_independent() -> None:
    noise = {"kind": "gaussian-noise", "std": 1.0}
    one = run(tiny(rounds=1, attack="none", defence={"preset": "none", "momentum": 0.0, "post": [noise]}))
    none = run(tiny(rounds=1, attack="none", defence={"preset": "none", "momentum": 0.0}))
    two = run(tiny(rounds=1, attack="none", defence={"preset": "none", "momentum": 0.0, "post": [noise, noise]}))
    ratio = distances(two.weights, none.weights)["distance_l2"] / distances(one.weights, none.weights)["distance_l2"]
    assert ratio == pytest.approx(2**0.5, rel=0.05)


def test_a_diverged_run_with_a_random_attack_is_still_a_result() -> None:
    result = run(
        tiny(learning_rate={"kind": "constant", "lr": 1e30}, attack="random-direction", defence="none", rounds=6)
    )
    assert result.summary["converged"] is False


def test_resume_never_takes_over_another_configuration(tmp_path: Path) -> None:
    tmp_path.joinpath("experiment.toml").write_text(tiny(seed=8).dumps())
    with pytest.raises(ConfigError, match="another configuration"):
        run(tiny(), tmp_path, resume=True)
    assert "seed = 8" in tmp_path.joinpath("experiment.toml").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"name": "mlp", "classes": 3}}, "model: classes: follows from the data set"),
        ({"defence__k": 10**6}, "k=1000000 is more than the model's"),
        ({"sampling": {"kind": "uniform", "cohort": 601}}, "sampling: cohort=601 of 600 clients"),
        ({"adversary": {"count": 601}}, "adversary: count=601 compromised clients of 600"),
        ({"attack__aux": 359}, "attack: 359 aux points leave no clean one"),
        ({"data__partition": {"kind": "iid", "clients": 2000}}, "data.partition: .*2000"),
        (
            {"data__partition": {"kind": "iid", "clients": 2000, "min_samples": 0}},
            r"data.partition: client \d+ has no samples",
        ),
        ({"defence": {"preset": "krum", "f": 9}}, "defence.pipeline: Krum: f=9 is out of range for n=20"),
    ],
)
def test_impossible_combinations_are_found_before_the_first_round(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tiny(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_is_never_overwritten(tmp_path: Path) -> None:
    run(tiny(rounds=2), tmp_path)
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        run(tiny(rounds=2), tmp_path)
    with pytest.raises(BezoarError, match="another configuration"):
        run(tiny(rounds=3), tmp_path, resume=True)
    assert run(tiny(rounds=2), tmp_path, resume=True).summary["rounds"] == 2
    assert (tmp_path / "summary.json").read_bytes() == before


SCRIPT = """
import sys
from pathlib import Path
from bezoar.experiments import Experiment, run
from tests.experiments.rules import register
register()
experiment = Experiment.load(sys.argv[1])
slow = float(sys.argv[3])
def watch(record):
    import time
    time.sleep(slow)
    print(record["kind"], record["round"], flush=True)
run(experiment, sys.argv[2], resume=True, progress=watch)
"""


def start(config: Path, out: Path, slow: float = 0.02) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(config), str(out), str(slow)], stdout=subprocess.PIPE, text=True
    )


#: Client momentum, drawn batches, an attack on the momentum rows, and a rule with memory of every kind.
REMEMBERING: dict[str, Any] = {
    "data__partition": {"kind": "dirichlet", "clients": 12, "alpha": 1.0},
    "sampling__cohort": 12,
    "clients": {"kind": "gradient", "momentum": 0.9, "batch_size": 4},
    "adversary": {"count": 3, "start": 3},
    "attack": "alie",
    "defence": {"pipeline": ["test-remembering"], "root_samples": 20},
}


@pytest.mark.parametrize(
    ("settings", "rounds_to_die"), [({}, (1, 5, 8)), (REMEMBERING, (5,))], ids=["sparsefed", "momentum"]
)
def test_kill_at_any_moment_then_resume_gives_the_same_bits(
    settings: dict[str, Any], rounds_to_die: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rule in NAMES.items():
        monkeypatch.setitem(RULES._parts, name, rule)
        monkeypatch.setitem(RULES._names, rule, name)
    experiment = tiny(**settings)
    experiment.dump(tmp_path / "e.toml")
    threads = torch.get_num_threads()
    whole = start(tmp_path / "e.toml", tmp_path / "whole", 0.0)
    assert whole.communicate(timeout=120)[0]
    assert whole.returncode == 0
    for round_to_die in rounds_to_die:
        with start(tmp_path / "e.toml", tmp_path / "killed") as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.split() == ["round", str(round_to_die)]:
                    break
            process.send_signal(signal.SIGKILL)
    last = start(tmp_path / "e.toml", tmp_path / "killed", 0.0)
    assert last.communicate(timeout=120)[0].splitlines()[0] != "round 1", "did not resume"
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    ours = json.loads((tmp_path / "whole" / "summary.json").read_text())
    theirs = json.loads((tmp_path / "killed" / "summary.json").read_text())
    for summary in (ours, theirs):
        summary.pop("seconds")
    assert ours == theirs
    assert threads == torch.get_num_threads()


def test_ctrl_c_stops_after_the_round_and_can_be_resumed(tmp_path: Path) -> None:
    def interrupt(record: Any) -> None:
        if record["kind"] == "round" and record["round"] == 7:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(Interrupted, match="stopped after round 7 of 12; go on with --resume"):
        run(tiny(), tmp_path / "run", progress=interrupt)
    resumed = run(tiny(), tmp_path / "run", resume=True)
    assert same_weights(resumed.weights, run(tiny()).weights)


def test_dropout_resumes_with_the_same_draws(tmp_path: Path) -> None:
    experiment = tiny(model={"name": "tests.experiments.models:with_dropout"}, attack="none")

    def stop(record: Any) -> None:
        if record["round"] == 7:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "run", progress=stop)
    assert same_weights(run(experiment, tmp_path / "run", resume=True).weights, run(experiment).weights)


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record["round"] == 7:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(Interrupted):
        run(tiny(), tmp_path, progress=stop)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"rubbish")
    with pytest.raises(BezoarError, match=r"checkpoint.safetensors: can not be read"):
        run(tiny(), tmp_path, resume=True)


def test_records_shorter_than_the_checkpoint_says_are_named(tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record["round"] == 7:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(Interrupted):
        run(tiny(), tmp_path, progress=stop)
    with (tmp_path / METRICS).open("rb+") as file:
        file.truncate(100)
    with pytest.raises(BezoarError, match=r"metrics.jsonl: damaged: shorter than the checkpoint says"):
        run(tiny(), tmp_path, resume=True)


def test_unwritable_directory_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BezoarError, match=r"can not be written: (Not a directory|File exists)"):
        run(tiny(), tmp_path / "file" / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    records = Records(tmp_path)
    (tmp_path / METRICS).symlink_to("/dev/full")
    with pytest.raises(BezoarError, match=r"metrics.jsonl: can not be written: No space left on device"):
        records.add([{"kind": "round", "round": 1, "skipped": None}], [])


def test_records_are_plain_json() -> None:
    record = plain({"a": torch.tensor(1.5), "b": float("nan"), "c": [float("inf"), 2], "d": {"e": torch.tensor(3)}})
    assert record == {"a": 1.5, "b": None, "c": [None, 2], "d": {"e": 3}}


def test_tensors_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.arange(3.0)}, {"round": "1"})
    with pytest.raises(BezoarError, match="can not be written"):
        save_tensors(tmp_path / "absent" / "t.safetensors", {"a": torch.arange(3.0)}, {})
    tensors, metadata = load_tensors(path)
    assert tensors["a"].tolist() == [0.0, 1.0, 2.0]
    assert metadata == {"round": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_public_names() -> None:
    assert bezoar.run is run
    assert bezoar.Experiment.from_table(TABLE) == tiny()


def test_a_run_counts_what_its_clients_send_and_fetch(tmp_path: Path) -> None:
    result = run(tiny(attack="none", adversary={}), tmp_path / "run")
    d, k = result.summary["parameters"], round(0.05 * result.summary["parameters"])
    ups = [record["bytes_up"] for record in result.rounds]
    downs = [record["bytes_down"] for record in result.rounds]
    assert ups == [20 * 4 * d] * 12
    # 20 of 600 clients a round: in the first all are new, in later ones a few are back.
    assert downs[0] == 20 * 4 * d
    assert 0 < downs[-1] <= 20 * 4 * d
    assert min(downs) < 20 * 4 * d
    assert result.summary["bytes_down"] == sum(downs)
    assert result.summary["bytes_up_per_client"] == 4 * d
    assert result.summary["bytes_down_per_client"] == sum(downs) / 240
    # Everyone in every round: after the first, each fetches exactly what the last step moved.
    always = run(tiny(attack="none", adversary={}, rounds=3, sampling__cohort=600))
    assert [record["bytes_down"] for record in always.rounds] == [600 * 4 * d, 600 * 8 * k, 600 * 8 * k]
    plain = run(tiny(attack="none", adversary={}, rounds=2, defence="none"))
    assert [record["bytes_down"] for record in plain.rounds] == [20 * 4 * d] * 2


def test_a_step_of_zero_moves_nothing() -> None:
    """Rounds a round late begin with a rate of zero: nobody has to hear of it."""
    schedule = {"kind": "triangular", "peak": 0.1, "offset": 1.0}
    result = run(tiny(rounds=3, sampling__cohort=600, learning_rate=schedule))
    k = round(0.05 * result.summary["parameters"])
    assert [record["bytes_down"] for record in result.rounds[1:]] == [0, 600 * 8 * k]


def test_who_is_drawn_for_a_round_that_does_not_take_place_is_no_part_of_the_mean() -> None:
    result = run(tiny(rounds=9, sampling={"kind": "epoch", "cohort": 80, "skip_tail": True}))
    assert [record["bytes_up"] == 0 for record in result.rounds] == [False] * 7 + [True, False]
    assert result.summary["bytes_up_per_client"] == 4 * result.summary["parameters"]


def test_sybils_send_and_fetch_as_well() -> None:
    with_sybils = run(tiny(rounds=2, adversary__sybils=3))
    assert [record["bytes_up"] for record in with_sybils.rounds] == [
        23 * 4 * with_sybils.summary["parameters"] for _ in range(2)
    ]


def test_a_checkpoint_without_a_ledger_leaves_downloads_unknown(tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record["round"] == 7:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(Interrupted):
        run(tiny(), tmp_path, progress=stop)
    path = tmp_path / "checkpoint.safetensors"
    tensors, metadata = load_tensors(path)
    assert {name for name in tensors if name.startswith("traffic.")} == {
        "traffic.moved",
        "traffic.counts",
        "traffic.seen",
    }
    save_tensors(path, {name: t for name, t in tensors.items() if not name.startswith("traffic.")}, metadata)
    result = run(tiny(), tmp_path, resume=True)
    assert [record["bytes_down"] is None for record in result.rounds] == [False] * 7 + [True] * 5
    assert result.summary["bytes_down"] is None
    assert result.summary["bytes_up"] == 240 * 4 * result.summary["parameters"]
