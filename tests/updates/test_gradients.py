"""Every way of asking for client gradients agrees with plain autograd, client by client, in float64."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bezoar.errors import ConfigError, UnsupportedError
from bezoar.models import FlatModel
from bezoar.updates import DenseUpdates, Updates, client_gradients
from bezoar.updates.ghost import GhostUpdates

pytestmark = pytest.mark.usefixtures("one_thread")

RAGGED = torch.tensor([5, 2, 5, 9, 2, 2, 1, 9, 1, 7, 7, 7, 7])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Layers this small only wait for other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(1), targets, reduction="none")


def oracle(model: nn.Module, inputs: Tensor, targets: Tensor, clients: Tensor) -> Tensor:
    model = copy.deepcopy(model).double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for client in clients.unique():
        mine = clients == client
        chosen = inputs[mine].double() if inputs.is_floating_point() else inputs[mine]
        loss = losses(model(chosen), targets[mine]).mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows)


def close(mine: Tensor, theirs: Tensor, tolerance: float) -> None:
    error = (mine.double() - theirs).norm() / theirs.norm().clamp(min=1e-300)
    assert error <= tolerance, f"relative error {error:.2e}"


def check(model: nn.Module, inputs: Tensor, clients: Tensor, method: Any = "ghost") -> Updates:
    """All answers against the oracle."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    targets = torch.randint(3, (len(inputs),), generator=generator)
    updates = client_gradients(model, losses, inputs, targets, clients, method)
    rows = oracle(model, inputs, targets, clients)
    n, d = rows.shape
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert updates.shape == (n, d)
    assert torch.equal(updates.clients, clients.unique())
    assert [s.stop - s.start for s in updates.layout] == [p.numel() for p in model.parameters() if p.requires_grad]
    close(updates.squared_norms(), rows.square().sum(1), tolerance)
    close(updates.gram(), rows @ rows.T, tolerance)
    vector = torch.randn(d, generator=generator, dtype=torch.float64)
    # A dot product can vanish by chance; its error is relative to the vectors' sizes.
    assert ((updates.dot(vector) - rows @ vector).abs() <= tolerance * rows.norm(dim=1) * vector.norm()).all()
    for k in (None, 1, 2, 4):
        weights = torch.randn(*[] if k is None else [k], n, generator=generator, dtype=torch.float64)
        mixed = updates.combine(weights)
        assert mixed.dtype == dtype
        close(mixed, weights @ rows, tolerance)
    for max_bytes in (1, 8 * n * 7, 2**26):
        stop = 0
        for block in updates.blocks(max_bytes):
            assert block.start == stop
            stop = block.stop
            assert block.values.nbytes <= max(max_bytes, n * dtype.itemsize)
            # Single columns can be small by chance: errors are relative to the whole.
            assert (block.values.double() - rows[:, block.start : stop]).norm() <= tolerance * rows.norm()
        assert stop == d
    close(updates.materialise(), rows, tolerance)
    index = torch.randint(d, (5,), generator=generator)
    assert (updates.columns(index).double() - rows[:, index]).norm() <= tolerance * rows.norm()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    close(updates.squared_distances(), distances, tolerance * 10)
    return updates


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.inner(x)
        changed += x
        return F.relu(changed, inplace=True)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.GroupNorm(2, 4),
        Residual(),
        nn.Sequential(nn.Conv2d(4, 30, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2)),
        nn.Flatten(),
        nn.Linear(120, 20),
        nn.ReLU(),
        nn.Linear(20, 3),
    )


def mlp() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def images(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 2, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("method", ["ghost", "loop", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_answer_agrees_with_autograd(dtype: torch.dtype, method: Any) -> None:
    updates = check(network().to(dtype), images(13, dtype), RAGGED, method)
    assert isinstance(updates, DenseUpdates if method == "loop" else GhostUpdates)


def test_channels_last() -> None:
    model = network().to(memory_format=torch.channels_last)
    check(model, images(13).contiguous(memory_format=torch.channels_last), RAGGED)


@pytest.mark.parametrize(
    "clients",
    [
        [3],
        [3, 3, 3, 3],
        [1, 2, 3, 4],
        [9, 9, 2, 2, 5, 5],
        [2, 2, 5, 5, 9, 9],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
        [-4, 10**12, -4],
    ],
)
def test_any_arrangement_of_clients(clients: list[int]) -> None:
    check(network(), images(len(clients)), torch.tensor(clients))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_random_arrangements_of_clients(clients: list[int]) -> None:
    inputs = torch.randn(len(clients), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check(mlp().double(), inputs, torch.tensor(clients))


def test_one_call_is_enough_and_leaves_no_trace() -> None:
    model, calls = network(), []
    inputs, targets = images(13), torch.zeros(13, dtype=torch.int64)
    client_gradients(model, losses, inputs, targets, RAGGED, "ghost")
    handle = model[-1].register_forward_hook(lambda *_: calls.append(1))
    client_gradients(model, losses, inputs, targets, RAGGED, "ghost")
    handle.remove()
    assert len(calls) == 1
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failing_loss_restores_the_model() -> None:
    model = network()

    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client_gradients(model, fails, images(4), torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_activations_are_freed_with_the_updates() -> None:
    seen: list[weakref.ref[Tensor]] = []
    model = mlp()
    model[1].register_forward_hook(lambda _module, _args, output: seen.append(weakref.ref(output)))
    gc.collect()
    gc.disable()
    try:
        updates = client_gradients(model, losses, torch.randn(4, 6), torch.zeros(4, dtype=torch.int64), torch.arange(4))
        del updates
        assert len(seen) >= 1
        assert all(ref() is None for ref in seen)
    finally:
        gc.enable()


def test_the_callers_gradient_mode_and_inputs_do_not_matter() -> None:
    inputs = images(13).requires_grad_()
    with torch.no_grad():
        updates = client_gradients(network(), losses, inputs, torch.zeros(13, dtype=torch.int64), RAGGED, "ghost")
    with torch.enable_grad():
        plain = client_gradients(network(), losses, inputs, torch.zeros(13, dtype=torch.int64), RAGGED, "loop")
    close(updates.materialise(), plain.materialise().double(), 1e-5)
    assert inputs.grad is None


def test_dropout_draws_once_and_is_accounted_for() -> None:
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 3)).double()
    inputs, targets = torch.randn(6, 6).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    clients = torch.tensor([0, 0, 0, 1, 1, 1])
    client_gradients(model, losses, inputs, targets, clients, "ghost")
    torch.manual_seed(5)
    updates = client_gradients(model, losses, inputs, targets, clients, "ghost")
    after = torch.rand(1)
    torch.manual_seed(5)
    per_sample = losses(model(inputs), targets)
    assert torch.equal(torch.rand(1), after)
    weights = torch.tensor([2.0, -1.0]).double()
    total = (per_sample * weights.repeat_interleave(3) / 3).sum()
    plain = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, list(model.parameters()))])
    close(updates.combine(weights), plain, 1e-12)


def test_the_check_of_a_new_model_leaves_the_random_stream_alone() -> None:
    drawn = []
    for _ in range(2):
        model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
        torch.manual_seed(5)
        client_gradients(model, losses, torch.ones(6, 6), torch.zeros(6, dtype=torch.int64), torch.arange(6), "ghost")
        drawn.append(torch.rand(1))
        client_gradients(model, losses, torch.ones(6, 6), torch.zeros(6, dtype=torch.int64), torch.arange(6), "ghost")
        torch.manual_seed(5)
        client_gradients(model, losses, torch.ones(6, 6), torch.zeros(6, dtype=torch.int64), torch.arange(6), "ghost")
        drawn.append(torch.rand(1))
    assert len({float(value) for value in drawn}) == 1


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))).flatten(1))
        return logits


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 6), (6,)),
        (nn.Linear(24, 24), (24,)),
        (nn.Conv2d(2, 2, 3, padding=1), (2, 4, 4)),
        (nn.Conv2d(40, 40, 3, padding=1), (40, 1, 1)),
        (nn.LayerNorm(6), (6,)),
        (nn.GroupNorm(2, 4), (4, 5)),
    ],
)
def test_a_layer_used_twice(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = Twice(copy.deepcopy(layer)).double()
    inputs = torch.randn(13, *shape).double()
    model(inputs)
    check(model, inputs, RAGGED)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(6, 3), nn.Linear(6, 50)
        self.never = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x)
        logits: Tensor = self.used(x)
        return logits


def test_layers_without_influence_have_zero_gradients() -> None:
    check(Unused(), torch.randn(13, 6), RAGGED)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.two(torch.tanh(self.one(x))))
        return logits


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.tanh(F.linear(self.one(x), self.one.weight)))
        return logits


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(x)
        return logits - logits.mean(0)


class Flattening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(x.reshape(-1, 3))
        return logits.view(-1, 2, 3).sum(1)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.sum()


class Changed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        logits: Tensor = self.out(x)
        x.zero_()
        return logits


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Functional, "outside the layer"),
        (Mixing, "mixes samples"),
        (Flattening, "first dimension"),
        (Changed, "in place"),
        (lambda: Scaled(6, 3), "Scaled"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), "Parametri"),
        (lambda: nn.Sequential(nn.PReLU(), nn.Linear(6, 3)), "PReLU"),
    ],
)
def test_models_out_of_reach_are_refused_with_the_reason(model: Any, reason: str) -> None:
    torch.manual_seed(0)
    made, inputs, targets = model(), torch.randn(13, 6), torch.zeros(13, dtype=torch.int64)
    with pytest.raises(UnsupportedError, match=reason):
        client_gradients(made, losses, inputs, targets, RAGGED, "ghost")
    if reason == "in place":
        return
    with pytest.warns(UserWarning, match=reason):
        updates = client_gradients(made, losses, inputs, targets, RAGGED)
    assert isinstance(updates, DenseUpdates)
    close(updates.materialise(), client_gradients(made, losses, inputs, targets, RAGGED, "loop").materialise(), 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client_gradients(made, losses, inputs, targets, RAGGED)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_a_weight_that_two_layers_share_is_no_obstacle(frozen: bool) -> None:
    model = Tied()
    model.one.weight.requires_grad_(not frozen)
    check(model, torch.randn(13, 6), RAGGED)


def test_a_new_use_of_a_model_is_checked_again() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.out(x)
            return logits if self.training else logits * self.out.weight.sum()

    model, inputs = Fickle(), torch.randn(13, 6)
    targets = torch.zeros(13, dtype=torch.int64)
    client_gradients(model, losses, inputs, targets, RAGGED, "ghost")
    model.eval()
    with pytest.raises(UnsupportedError, match="outside the layer"):
        client_gradients(model, losses, inputs, targets, RAGGED, "ghost")


@pytest.mark.parametrize("method", ["auto", "ghost", "loop"])
def test_batch_norm_in_training_is_refused(method: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    inputs, targets = torch.randn(13, 6), torch.zeros(13, dtype=torch.int64)
    with pytest.raises(UnsupportedError, match="GroupNorm"):
        client_gradients(model, losses, inputs, targets, RAGGED, method)
    model[1].eval()
    model[1].requires_grad_(False)
    client_gradients(model, losses, inputs, targets, RAGGED, method)


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return losses(outputs, targets).mean()


@pytest.mark.parametrize("method", ["ghost", "loop"])
def test_wrong_input_is_named(method: Any) -> None:
    model, inputs, targets = mlp(), torch.randn(13, 6), torch.zeros(13, dtype=torch.int64)
    with pytest.raises(ConfigError, match="reduction='none'"):
        client_gradients(model, mean_loss, inputs, targets, RAGGED, method)
    with pytest.raises(ConfigError, match="13, 12, 13"):
        client_gradients(model, losses, inputs, targets[1:], RAGGED, method)
    with pytest.raises(ConfigError, match="at least one sample"):
        client_gradients(model, losses, inputs[:0], targets[:0], RAGGED[:0], method)
    with pytest.raises(ConfigError, match="integers"):
        client_gradients(model, losses, inputs, targets, RAGGED.double(), method)
    with pytest.raises(ConfigError, match="no trainable"):
        client_gradients(mlp().requires_grad_(False), losses, inputs, targets, RAGGED, method)
    with pytest.raises(ConfigError, match="did you mean 'ghost'"):
        client_gradients(model, losses, inputs, targets, RAGGED, "gohst")  # type: ignore[arg-type]


def made() -> tuple[nn.Module, Updates, Tensor]:
    model, inputs, targets = network().double(), images(13, torch.float64), torch.zeros(13, dtype=torch.int64)
    return (
        model,
        client_gradients(model, losses, inputs, targets, RAGGED, "ghost"),
        oracle(model, inputs, targets, RAGGED),
    )


def test_wrong_questions_are_named() -> None:
    _, updates, rows = made()
    n, d = rows.shape
    with pytest.raises(ConfigError, match=f"\\[{n}\\]"):
        updates.combine(torch.ones(n + 1))
    with pytest.raises(ConfigError, match=f"\\[{d}\\]"):
        updates.dot(torch.ones(d + 1))
    with pytest.raises(ConfigError, match="weights"):
        updates.select(torch.tensor([0])).combine(torch.ones(2))


def test_changed_parameters_are_noticed() -> None:
    model, updates, _ = made()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1
    for ask in (
        updates.gram,
        updates.squared_norms,
        lambda: updates.combine(torch.ones(5)),
        lambda: updates.dot(torch.ones(updates.shape[1])),
        lambda: next(iter(updates.blocks())),
    ):
        with pytest.raises(RuntimeError, match="parameters changed"):
            ask()


def test_changes_through_a_flat_vector_are_noticed() -> None:
    flat = FlatModel.of(mlp())
    inputs, targets = torch.randn(13, 6), torch.zeros(13, dtype=torch.int64)
    updates = client_gradients(flat.model, losses, inputs, targets, RAGGED, "ghost")
    updates.gram()
    flat.vector[7] += 1
    with pytest.raises(RuntimeError, match="parameters changed"):
        updates.combine(torch.ones(5))


def test_changes_behind_the_version_counters_are_noticed() -> None:
    model = mlp()
    vector = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    for p, piece in zip(model.parameters(), vector.split([p.numel() for p in model.parameters()]), strict=True):
        p.data = piece.view(p.shape)
    inputs, targets = torch.randn(13, 6), torch.zeros(13, dtype=torch.int64)
    updates = client_gradients(model, losses, inputs, targets, RAGGED, "ghost")
    updates.gram()
    vector[7] += 1
    with pytest.raises(RuntimeError, match="parameters changed"):
        updates.combine(torch.ones(5))


def test_blocks_can_be_read_again() -> None:
    _, updates, rows = made()
    for _ in range(2):
        close(torch.cat([block.values for block in updates.blocks(1000)], 1), rows, 1e-12)


def test_selected_rows() -> None:
    _, updates, rows = made()
    index = torch.tensor([3, 0, 3])
    chosen, expected = updates.select(index), rows[index]
    assert torch.equal(chosen.clients, updates.clients[index])
    assert chosen.layout == updates.layout
    close(chosen.squared_norms(), expected.square().sum(1), 1e-12)
    close(chosen.gram(), expected @ expected.T, 1e-12)
    close(chosen.materialise(), expected, 1e-12)
    weights = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 1.0], [1.0, 1.0, 1.0]]).double()
    close(chosen.combine(weights), weights @ expected, 1e-12)
    close(chosen.combine(weights[0]), weights[0] @ expected, 1e-12)
    close(chosen.dot(rows[1]), expected @ rows[1], 1e-12)
    distances = chosen.squared_distances()
    assert distances[0, 2] == 0
    close(distances[0, 1], (rows[3] - rows[0]).square().sum(), 1e-12)
    close(chosen.select(torch.tensor([1])).materialise(), rows[:1], 1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_stay_among_themselves(value: float) -> None:
    model, inputs, targets = network().double(), images(13, torch.float64), torch.zeros(13, dtype=torch.int64)
    rows = oracle(model, inputs, targets, RAGGED)
    inputs = inputs.clone()
    inputs[RAGGED == 7] = value
    updates = client_gradients(model, losses, inputs, targets, RAGGED, "ghost")
    good = torch.tensor([0, 1, 2, 4])
    assert updates.finite().tolist() == [True, True, True, False, True]
    close(updates.gram()[good][:, good], rows[good] @ rows[good].T, 1e-12)
    kept, expected = updates.select(good), rows[good]
    assert kept.finite().all()
    for weights in (torch.rand(4).double(), torch.rand(5, 4).double()):
        close(kept.combine(weights), weights @ expected, 1e-12)
    close(kept.materialise(), expected, 1e-12)
    close(kept.dot(rows[0]), expected @ rows[0], 1e-12)
    assert torch.isfinite(kept.squared_distances()).all()


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25])
def test_huge_and_tiny_rows_keep_their_norms(scale: float) -> None:
    """In float32 the squares of these numbers over- or underflow."""
    model = nn.Sequential(nn.Linear(6, 40, bias=False), nn.Linear(40, 3, bias=False))
    inputs = torch.randn(13, 6) * torch.where(RAGGED == 7, scale, 1.0)[:, None]

    def linear(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0]

    updates = client_gradients(model, linear, inputs, torch.zeros(13), RAGGED, "ghost")
    wider = copy.deepcopy(model).double()
    wide = client_gradients(wider, linear, inputs.double(), torch.zeros(13), RAGGED, "loop").materialise()
    close(updates.squared_norms() / wide.square().sum(1), torch.ones(5).double(), 1e-5)
    norms = wide.norm(dim=1)
    close(updates.gram() / norms[:, None] / norms, (wide / norms[:, None]) @ (wide / norms[:, None]).T, 1e-5)


def test_coinciding_rows_have_distance_zero_and_close_rows_their_exact_distance() -> None:
    model, inputs = mlp().double(), torch.randn(3, 6).double()
    inputs[1] = inputs[0]
    inputs[2] = inputs[0] + 1e-7
    targets, clients = torch.zeros(3, dtype=torch.int64), torch.arange(3)
    distances = client_gradients(model, losses, inputs, targets, clients, "ghost").squared_distances()
    rows = oracle(model, inputs, targets, clients)
    assert distances[0, 1] == 0
    close(distances[0, 2], (rows[0] - rows[2]).square().sum(), 1e-6)


def test_bfloat16() -> None:
    model, inputs = network().bfloat16(), images(13).bfloat16()
    targets = torch.zeros(13, dtype=torch.int64)
    updates = client_gradients(model, losses, inputs, targets, RAGGED, "ghost")
    rows = oracle(model, inputs, targets, RAGGED)
    assert updates.combine(torch.ones(5)).dtype == torch.bfloat16
    assert updates.squared_norms().dtype == updates.gram().dtype == updates.dot(torch.ones(rows.shape[1])).dtype
    close(updates.squared_norms(), rows.square().sum(1), 0.1)
    close(updates.gram(), rows @ rows.T, 0.1)
    close(updates.combine(torch.ones(5)), rows.sum(0), 0.1)
    close(updates.materialise(), rows, 0.1)


def test_autocast() -> None:
    model, inputs, targets = network(), images(13), torch.zeros(13, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        updates = client_gradients(model, losses, inputs, targets, RAGGED, "ghost")
    assert updates.dtype == torch.float32
    close(updates.materialise(), oracle(model, inputs, targets, RAGGED), 0.1)
