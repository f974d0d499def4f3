from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bezoar.errors import ConfigError
from bezoar.models import FlatModel, flat_copy, flatten, load_vector, make_model


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    model[3].bias.requires_grad_(False)
    return model


def test_values_order_and_output_stay() -> None:
    model = network().eval()
    before, output = flat_copy(model), model(torch.ones(1, 1, 4, 4))
    frozen, running = model[3].bias, model[1].running_mean
    vector = flatten(model)
    assert torch.equal(vector, before)
    assert torch.equal(vector, torch.cat([p.reshape(-1) for p in model.parameters() if p.requires_grad]))
    assert not vector.requires_grad
    assert torch.equal(model(torch.ones(1, 1, 4, 4)), output)
    assert model[3].bias is frozen
    assert model[1].running_mean is running


def test_the_vector_moves_the_model_and_the_model_the_vector() -> None:
    model = network()
    vector = flatten(model)
    vector.fill_(2.0)
    assert all((parameter == 2).all() for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        model[0].weight.fill_(5.0)
    assert (vector[:18] == 5).all()
    assert all(
        parameter.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
        for parameter in model.parameters()
        if parameter.requires_grad
    )


def test_version_counters_notice_a_change_of_the_vector() -> None:
    model = network()
    vector = flatten(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter._version for parameter in parameters]
    vector.add_(1.0)
    assert all(parameter._version > old for parameter, old in zip(parameters, before, strict=True))
    loss = model(torch.ones(2, 1, 4, 4)).square().sum()
    vector.sub_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_arrive_and_an_optimiser_moves_the_vector() -> None:
    plain, flat = network(), network()
    vector = flatten(flat)
    for model in (plain, flat):
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(torch.ones(2, 1, 4, 4)).square().sum().backward()
        optimiser.step()
    assert torch.equal(vector, flat_copy(plain))


def test_tied_parameters_stay_tied_and_count_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    vector = flatten(model)
    assert len(vector) == 4
    assert model[0].weight is model[1].weight


def test_parameters_kept_in_lists_follow_too() -> None:
    model = nn.Module()
    model.weights = nn.ParameterList([torch.ones(2), torch.ones(3)])
    flatten(model).fill_(4.0)
    assert [weight.tolist() for weight in model.weights] == [[4.0] * 2, [4.0] * 3]


def test_a_vector_that_wants_gradients_can_be_loaded() -> None:
    flat = FlatModel.of(network())
    flat.load(torch.ones(flat.d, requires_grad=True))
    assert not flat.vector.requires_grad


def test_a_recurrent_layer_follows_too() -> None:
    model = nn.LSTM(2, 3)
    vector = flatten(model)
    vector.zero_()
    assert model(torch.ones(1, 1, 2))[0].abs().sum() == 0


def test_load_vector_works_flattened_or_not() -> None:
    model = network()
    wanted = torch.arange(float(len(flat_copy(model))))
    load_vector(model, wanted)
    assert torch.equal(flat_copy(model), wanted)
    vector = flatten(model)
    load_vector(model, wanted + 1)
    assert torch.equal(vector, wanted + 1)
    with pytest.raises(ConfigError, match=r"has 48 trainable parameters, the vector has shape \[45\]"):
        load_vector(network(), torch.zeros(45))


def test_a_copy_is_independent_until_flattened_again() -> None:
    model = network()
    vector = flatten(model)
    twin = copy.deepcopy(model)
    other = flatten(twin)
    other.zero_()
    assert vector.abs().sum() > 0
    assert flat_copy(twin).abs().sum() == 0


def test_flat_model_knows_names_and_columns() -> None:
    flat = FlatModel.of(make_model("cnn", (1, 8, 8), 10, 0))
    assert [segment.name for segment in flat.layout][:2] == ["0.weight", "0.bias"]
    assert flat.layout[0].shape == (32, 1, 3, 3)
    assert flat.d == flat.layout[-1].stop == len(flat.vector)
    for segment in flat.layout:
        parameter = flat.model.get_parameter(segment.name)
        assert torch.equal(parameter, flat.vector[segment.start : segment.stop].view(segment.shape))
    flat.load(torch.zeros(flat.d))
    assert flat_copy(flat.model).abs().sum() == 0
    with pytest.raises(ConfigError, match="trainable parameters"):
        flat.load(torch.zeros(3))


def test_models_that_are_no_vector_are_refused() -> None:
    with pytest.raises(ConfigError, match="Flatten has no trainable parameters"):
        flatten(nn.Flatten())
    with pytest.raises(ConfigError, match=r"mixes parameters of torch.float32 on cpu and torch.float64 on cpu"):
        flatten(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()))
