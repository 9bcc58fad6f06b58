"""Scaling and squaring with the kernels of a composition, in the memory of a few fields."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from usreg_kernels import dispatch
from usreg_kernels.backend import Backend, BackendName, Tensors
from usreg_kernels.ops.compose_ddf import OP as COMPOSE_DDF
from usreg_kernels.ops.operator import loss_dtype

# Fields that a backward pass holds and goes back over before it starts from the velocity once more. Beside all but the
# first ones it holds the gradient so far, too.
_FIRST_HELD, _HELD = 3, 2


class Squaring(Backend):
    """Squares a field by the backend of ``compose_ddf`` that has the same name.

    Nothing is saved for backward, which needs the field before each squaring, in reverse order. It computes them again
    from the velocity, and holds at most three fields at a time beyond the incoming gradient and its result. Seven steps
    take ten squarings more.
    """

    def __init__(self, name: BackendName) -> None:
        self.name = name

    @property
    def composition(self) -> Backend:
        """The backend that composes."""
        return dispatch.get_backend(COMPOSE_DDF.name, self.name)

    def missing(self) -> str | None:
        """What the composition misses."""
        return self.composition.missing()

    def declines(self, tensors: Tensors, *, steps: int, padding_mode: str) -> str | None:
        """What the composition declines."""
        return self.composition.declines((tensors[0], tensors[0]), padding_mode=padding_mode)

    def forward(
        self, velocity: torch.Tensor, *, needs_grad: list[bool], steps: int, padding_mode: str
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The displacement after one unit of time."""
        return self._squared(_scaled(velocity, steps), steps, padding_mode), []

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        velocity: torch.Tensor,
        *,
        needs_grad: list[bool],
        steps: int,
        padding_mode: str,
    ) -> list[torch.Tensor]:
        """The gradient of each squaring in turn."""
        if not any(needs_grad):
            return []
        grad = grad_output
        for field in self._fields_in_reverse(velocity, steps, padding_mode):
            grad = self.square_backward(grad, field, padding_mode)
            del field  # its memory serves the next one
        return [(grad * 0.5**steps).to(velocity.dtype)]

    def square_backward(self, grad_output: torch.Tensor, field: torch.Tensor, padding_mode: str) -> torch.Tensor:
        """The gradient of ``compose_ddf(field, field)`` to ``field``."""
        to_outer, to_inner = self.composition.backward(
            grad_output, [], field, field, needs_grad=[True, True], padding_mode=padding_mode
        )
        return to_inner.add_(to_outer)

    def _fields_in_reverse(self, velocity: torch.Tensor, steps: int, padding_mode: str) -> Iterator[torch.Tensor]:
        """The fields before the last squaring, before the one before it, and so on, down to the scaled velocity."""
        end, held = steps, _FIRST_HELD
        while end > 0:
            begin = max(0, end - held)
            fields = [self._squared(_scaled(velocity, steps), begin, padding_mode)]
            while len(fields) < end - begin:
                fields.append(self._squared(fields[-1], 1, padding_mode))
            while fields:
                yield fields.pop()  # its memory serves the next one
            end, held = begin, _HELD

    def _squared(self, field: torch.Tensor, count: int, padding_mode: str) -> torch.Tensor:
        for _ in range(count):
            field, _ = self.composition.forward(field, field, needs_grad=[False, False], padding_mode=padding_mode)
        return field


def _scaled(velocity: torch.Tensor, steps: int) -> torch.Tensor:
    """The field of the shortest time, float32 at least."""
    return velocity.contiguous().to(loss_dtype(velocity.dtype)) * 0.5**steps
