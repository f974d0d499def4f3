"""One forward and one backward pass in which layers note their inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bezoar.updates.ghost.cohort import Cohort
from bezoar.updates.ghost.layer import WORK_BYTES, Affine, GhostImpossibleError, Matrix
from bezoar.updates.ghost.parts import Added, Held, Pair, Part, Rows, rows_of
from bezoar.updates.ghost.plan import Planned

Receive = Callable[[Tensor], None]


def record(model: nn.Module, planned: Sequence[Planned], run: Callable[[], Tensor], cohort: Cohort) -> dict[int, Part]:
    """The parts of the client gradients, by position of the trainable parameter.

    ``run`` calls the model on the arranged batch and gives the sum over clients of their mean losses.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    # Backward reaches layers whose input needs no gradient only through something that does.
    source = torch.zeros((), device=trainable[0].device, dtype=trainable[0].dtype, requires_grad=True)
    notes = [_Notes(item, cohort, trainable) for item in planned]
    with _frozen(trainable), torch.enable_grad():
        handles = [
            note.item.module.register_forward_hook(note.watcher(source), prepend=True, with_kwargs=True)
            for note in notes
        ]
        try:
            total = run()
        finally:
            for handle in handles:
                handle.remove()
        if total.requires_grad:
            torch.autograd.grad(total, source, allow_unused=True)
    parts: dict[int, Part] = {}
    for note in notes:
        for at, part in note.parts():
            parts[at] = Added((parts[at], part)) if at in parts else part
    return parts


class _Notes:
    """What one layer saw: rows already formed, and pairs of A and B."""

    def __init__(self, item: Planned, cohort: Cohort, trainable: Sequence[Tensor]) -> None:
        self.item, self.cohort = item, cohort
        self.like: dict[str, Tensor] = {
            name: trainable[at].detach()
            for name, at in (("weight", item.weight), ("bias", item.bias))
            if at is not None
        }
        self.calls = 0
        self.rows: dict[str, Tensor] = {}
        self.pairs: list[Pair] = []

    def watcher(self, source: Tensor) -> Callable[..., Any]:
        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            given = args[0] if args else kwargs.get("input")
            if not isinstance(given, Tensor) or not isinstance(output, Tensor):
                raise GhostImpossibleError(f"a {type(module).__name__} was called without a tensor")
            if given.ndim == 0 or len(given) != self.cohort.size or len(output) != self.cohort.size:
                raise GhostImpossibleError(
                    f"a {type(module).__name__} got an input of shape {list(given.shape)}, "
                    f"whose first dimension is not that of the {self.cohort.size} samples"
                )
            self.calls += 1
            receive = self._receiver(given.detach(), output.dtype)
            if output.requires_grad:
                output.register_hook(receive)  # type: ignore[no-untyped-call]
                return None
            return _Tap.apply(output, source, receive)  # type: ignore[no-untyped-call]

        return watch

    def _receiver(self, given: Tensor, dtype: torch.dtype) -> Receive:
        # Popped when used, so that the input is freed as early as in an ordinary backward pass.
        box, version = [given], given._version

        def receive(gradient: Tensor) -> None:
            a = box.pop()
            if a._version != version:
                raise GhostImpossibleError("a layer's input was changed in place after the layer had used it")
            self._note(a, gradient.detach())

        return receive

    def _note(self, a: Tensor, b: Tensor) -> None:
        layer, cohort = self.item.layer, self.cohort
        wanted = next(iter(self.like.values())).dtype
        if a.is_floating_point():
            a = a.to(wanted)
        needs_input = "weight" in self.like
        if needs_input or isinstance(layer, Affine):
            a = layer.inputs(a)
        b = layer.gradients(a, b.to(wanted))
        if "bias" in self.like:
            self._add("bias", [layer.bias_rows(b[g.samples], g.size) for g in cohort.groups])
        if not needs_input:
            return
        if isinstance(layer, Affine):
            self._add("weight", [layer.weight_rows(a[g.samples], b[g.samples], g.size) for g in cohort.groups])
        elif isinstance(layer, Matrix):
            if self.calls == 1 or not layer.mergeable:
                self._keep_or_hold(layer, a, b)
            else:
                self.pairs.append((a, b))

    def _add(self, name: str, parts: list[Tensor]) -> None:
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.rows[name] = self.rows[name] + rows if name in self.rows else rows

    def _keep_or_hold(self, layer: Matrix, a: Tensor, b: Tensor) -> None:
        """Form rows now if they are no larger than A and B (freed then) or small; else hold A and B."""
        size = len(self.cohort) * layer.units * layer.width * b.element_size()
        affordable = size <= max(WORK_BYTES, a.nbytes + b.nbytes)
        ghost = self.calls == 1 and all(layer.prefers_ghost(a, b, g.size) for g in self.cohort.groups)
        if affordable and not ghost and not self.pairs:
            self._add("weight", [rows_of(layer, a, b, self.cohort)])
        else:
            self.pairs.append((a, b))

    def parts(self) -> Iterator[tuple[int, Part]]:
        item, layer = self.item, self.item.layer
        if item.bias is not None:
            yield item.bias, Rows(self._rows_or_zero("bias"))
        if item.weight is None:
            return
        if isinstance(layer, Matrix) and "weight" not in self.rows:
            if layer.mergeable and len(self.pairs) > 1:
                a, b = (torch.cat(tensors, dim=1) for tensors in zip(*self.pairs, strict=True))
                self.pairs, self.calls = [], 1
                self._keep_or_hold(layer, a, b)
            if "weight" not in self.rows:
                yield item.weight, Held(layer, self.pairs, self.cohort, self.like["weight"])
                return
        yield item.weight, Rows(self._rows_or_zero("weight"))

    def _rows_or_zero(self, name: str) -> Tensor:
        if name in self.rows:
            return self.rows[name]
        return self.like[name].new_zeros(1, 1).expand(len(self.cohort), self.like[name].numel())


class _Tap(torch.autograd.Function):
    """Hands on a layer's output as it is, and the gradient that comes back to ``receive``.

    The output counts as changed in place, so it is neither copied nor a view, and may be changed in place later.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, source: Tensor, receive: Receive) -> Tensor:
        ctx.mark_dirty(output)
        ctx.receive = receive
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.receive(gradients[0])
        return None, None, None


@contextmanager
def _frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Without gradients for ``parameters``; the backward pass then skips them."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
