"""Low-rank adapters and other trainable subsets: what of a model a federation trains, the rest being frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from bezoar.errors import ConfigError, nearest
from bezoar.models._checks import whole
from bezoar.seeding import generator


class LoRALinear(nn.Module):
    r"""A frozen linear layer and a trainable low-rank change of it.

    .. math:: x \mapsto W x + b + \frac{\alpha}{r} B A x, \quad A \in \mathbb R^{r \times \text{in}},\;
        B \in \mathbb R^{\text{out} \times r}

    A is drawn as the weight of an ``nn.Linear`` (Kaiming uniform), B starts at zero, so that at first nothing changes.
    Submodules are called as in the library peft: ``base_layer``, ``lora_A``, ``lora_B``. ``base`` may be any layer with
    a weight of two dimensions; ``transposed`` if that is [in, out] (GPT-2's Conv1D). It has no attribute ``weight``:
    code that would use the frozen weight alone and leave the change out fails.

    Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.

    >>> layer = LoRALinear(nn.Linear(3, 2), rank=1, alpha=2.0, draws=torch.Generator())
    >>> [name for name, p in layer.named_parameters() if p.requires_grad]
    ['lora_A.weight', 'lora_B.weight']
    """

    def __init__(
        self, base: nn.Module, rank: int, alpha: float, draws: torch.Generator, transposed: bool = False
    ) -> None:
        super().__init__()
        weight = base.weight
        assert isinstance(weight, Tensor)
        out, inside = weight.shape[::-1] if transposed else weight.shape
        self.base_layer, self.scale, self.transposed = base.requires_grad_(False), alpha / rank, transposed
        with torch.random.fork_rng(devices=[]):
            self.lora_A, self.lora_B = nn.Linear(inside, rank, bias=False), nn.Linear(rank, out, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=draws)
        nn.init.zeros_(self.lora_B.weight)
        self.to(weight.device, weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        changed: Tensor = self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))
        return changed

    def merged(self) -> Tensor:
        """W + (alpha / r) B A, in the form of the frozen layer's weight."""
        with torch.no_grad():
            change = self.scale * (self.lora_B.weight @ self.lora_A.weight)
            weight = self.base_layer.weight
            assert isinstance(weight, Tensor)
            return weight + (change.T if self.transposed else change)


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Sequence[str], seed: int) -> tuple[str, ...]:
    """Replace the linear layers of ``model`` that ``targets`` name by :class:`LoRALinear`, and freeze all the rest.

    A target is a layer's path, the end of it (``"query"``), or a pattern of either (``"blocks.1.*"``). What a layer's A
    is drawn from depends on ``seed`` and the layer's path alone. Returns the paths.

    Raises:
        ConfigError: a target names no linear layer, ``rank`` exceeds a layer's size, ``alpha`` is not positive.
    """
    whole("lora.rank", rank)
    if not 0 < alpha <= 1e6:
        raise ConfigError(f"lora.alpha must be a positive number of at most 1e6, got {alpha!r}")
    layers = {path: module for path, module in model.named_modules() if path and _linear(module)}
    chosen: set[str] = set()
    for target in targets:
        found = {path for path in layers if _ends(path, target)}
        if not found:
            ends = {path.rpartition(".")[2] for path in layers}
            raise ConfigError(f"lora.targets: {target!r} is no linear layer of the model; {nearest(target, ends)}")
        chosen |= found
    model.requires_grad_(False)
    paths = tuple(path for path in layers if path in chosen)
    for path in paths:
        base = layers[path]
        assert isinstance(base.weight, Tensor)
        if rank > min(base.weight.shape):
            raise ConfigError(
                f"lora.rank: {rank} exceeds the size of {path!r}, {list(base.weight.shape)}: there is nothing low-rank"
            )
        parent, _, name = path.rpartition(".")
        draws = generator(seed, f"lora {path}")
        layer = LoRALinear(base, rank, alpha, draws, transposed=not isinstance(base, nn.Linear))
        setattr(model.get_submodule(parent), name, layer)
    return paths


def only(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Freeze all parameters but those that ``patterns`` name; returns their names.

    A pattern is a parameter's name, the path of a module that holds it, or has wildcards (``"blocks.1.*"``).

    Raises:
        ConfigError: a pattern names nothing.
    """
    parameters = dict(model.named_parameters())
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in parameters if name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)}
        if not found:
            raise ConfigError(f"trainable: {pattern!r} is no parameter of the model; {_near(pattern, parameters)}")
        chosen |= found
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    return tuple(name for name in parameters if name in chosen)


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The state of ``model`` with every adapter merged into its layer: that of the model without adapters.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> _ = add_lora(model, 1, 1.0, ["0"], seed=0)
    >>> sorted(merged(model))
    ['0.bias', '0.weight']
    """
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for path, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            start = f"{path}." if path else ""
            state[f"{start}base_layer.weight"] = layer.merged()
            del state[f"{start}lora_A.weight"], state[f"{start}lora_B.weight"]
    return {bare(name): value for name, value in state.items()}


def bare(name: str) -> str:
    """What a tensor is called in the model without adapters."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def _linear(module: nn.Module) -> bool:
    # GPT-2's linear layers are called Conv1D, of a library that may be absent.
    return type(module) is nn.Linear or (
        type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
    )


def _ends(path: str, target: str) -> bool:
    return fnmatchcase(path, target) or fnmatchcase(path, f"*.{target}")


def _near(pattern: str, names: Iterable[str]) -> str:
    first = pattern.partition("*")[0].strip(".")
    modules = {name.rpartition(".")[0] for name in names} | set(names)
    return nearest(first or pattern, modules)
