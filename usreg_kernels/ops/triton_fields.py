"""What the Triton kernels of a displacement field's losses share: how they are launched, and where their voxels lie.

A program takes BLOCK voxels of one component that follow on each other in memory, so that any shape fills it. Values of
neighbours come from the caches: each travels from memory once. H and W are constants of the compilation, since dividing
by a variable takes tens of instructions: a field of another height or width compiles its kernels again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.field_weights import FieldWeights
from usreg_kernels.ops.triton_backend import OPTIONS, device_guard
from usreg_kernels.ops.triton_reduction import finish


class Weights(NamedTuple):
    """The numbers that the kernels of a loss take.

    Attributes:
        terms: what multiplies each term of a voxel's value, such as the penalty along an axis.
        divisor: of the sum of all values: their number for a mean, else 1.
        own: what multiplies all values of a component, by its own axis z, y, x; empty where kernels take none.
    """

    terms: list[float]
    divisor: int
    own: Sequence[float] = ()


def kernel_weights(weights: FieldWeights, differences: int) -> Weights:
    """The weights as kernels take them.

    ``terms`` are those of the first component's differences, after zeros up to a volume's number of ``differences``;
    ``own`` are all components' weights over these.
    """
    terms = weights.penalties[: weights.differences]
    own = [*weights.ratios, *[1.0] * (3 - len(weights.ratios))]
    return Weights([*[0.0] * (differences - len(terms)), *terms], weights.divisor, own)


def _programs(field: torch.Tensor, block: int) -> tuple[int, int]:
    """How many programs of ``block`` voxels a component takes, and how many the field takes."""
    pieces = triton.cdiv(field[0, 0].numel(), block)
    return pieces, field.shape[0] * field.shape[1] * pieces


def _launch(kernel: Any, tensors: Sequence[Any], field: torch.Tensor, weights: Sequence[float], constants: Any) -> None:
    """``kernel(*tensors, pieces, D, H, W, *weights, DIMS, WIDE, **constants)``; axes that are missing have size 1."""
    pieces, count = _programs(field, constants["BLOCK"])
    sizes = [1] * (5 - field.ndim) + list(field.shape[2:])
    wide = field[0, 0].numel() >= 2**31
    kernel[(count,)](*tensors, pieces, *sizes, *weights, DIMS=field.ndim - 2, WIDE=wide, **constants, **OPTIONS)


def add_up(
    kernel: Any, tensors: Sequence[torch.Tensor | None], field: torch.Tensor, weights: Weights, **constants: Any
) -> torch.Tensor:
    """The loss, a float32 scalar: ``kernel(*tensors, partials, ...)`` writes a sum per program; they are added up.

    Args:
        kernel: begins with :func:`locate`.
        tensors: what it reads.
        field: one of them, (B, n, spatial...): gives the programs. All are contiguous.
        weights: its numbers.
        constants: of its compilation, with BLOCK, without those that follow from the field.
    """
    if field.numel() == 0:
        return field.new_full((), 0.0 if weights.divisor else float("nan"), dtype=torch.float32)
    partials = field.new_empty(_programs(field, constants["BLOCK"])[1], dtype=torch.float32)
    with device_guard(field):
        _launch(kernel, [*tensors, partials], field, [*weights.terms, *weights.own], constants)
        return finish(partials, weights.divisor)[0]


def write(
    kernel: Any, tensors: Sequence[torch.Tensor | None], field: torch.Tensor, weights: Sequence[float], **constants: Any
) -> None:
    """Run a kernel that writes a value per voxel to one of its tensors; arguments as for :func:`add_up`."""
    if field.numel():
        with device_guard(field):
            _launch(kernel, tensors, field, weights, constants)


def gradient_weights(weights: Weights) -> list[float]:
    """The weights of a kernel of the backward pass, which divides by the divisor of the sum."""
    return [*(term / (weights.divisor or 1) for term in weights.terms), *weights.own]


def loss_of_one_field(
    kernel: Any, dvf: torch.Tensor, shape: tuple[int, ...], weights: Weights, **constants: Any
) -> torch.Tensor:
    """The loss map of a field, of this shape, or the loss where it is (): ``kernel(dvf, loss_map, partials, ...)``."""
    field = dvf.contiguous()
    if shape == ():
        return add_up(kernel, [field, None], field, weights, KEEP_MAP=False, **constants)
    loss_map = field.new_empty(shape, dtype=torch.float32)
    write(kernel, [field, loss_map, None], field, [*weights.terms, *weights.own], KEEP_MAP=True, **constants)
    return loss_map


def gradient_of_one_field(
    kernel: Any, grad_output: torch.Tensor, dvf: torch.Tensor, weights: Weights, **constants: Any
) -> torch.Tensor:
    """The gradient of a field, from that of its loss or loss map: ``kernel(grad_output, dvf, gradient, ...)``."""
    field = dvf.contiguous()
    gradient = torch.empty_like(field)
    tensors = [grad_output.contiguous(), field, gradient]
    write(kernel, tensors, field, gradient_weights(weights), HAS_MAP=grad_output.ndim > 0, **constants)
    return gradient


@triton.jit
def locate(pieces, D, H, W, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """This program's component and its first element; of its voxels: index within the component, inside, z, y, x.

    WIDE: whether a component has more voxels than int32 counts.
    """
    component = tl.program_id(0) // pieces
    piece = tl.program_id(0) % pieces
    if WIDE:
        index = piece.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        size = (tl.zeros((), tl.int64) + D) * H * W
    else:
        index = piece * BLOCK + tl.arange(0, BLOCK)
        size = D * H * W
    row = index // W
    return component, component.to(tl.int64) * D * H * W, index, index < size, row // H, row % H, index % W


@triton.jit
def lies_within(position, size, MARGIN: tl.constexpr):
    """Whether positions along an axis are at least MARGIN voxels from its ends."""
    return (position >= MARGIN) & (position < size - MARGIN)


@triton.jit
def load_real(pointer, mask):
    """Values as float32, 0 where there are none."""
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def map_index(component, z, y, x, D, H, W, DIMS: tl.constexpr, MARGIN: tl.constexpr):
    """Where a voxel's value lies in a loss map that leaves out MARGIN voxels at each border of the existing axes."""
    if DIMS >= 3:
        D = D - 2 * MARGIN
        z = z - MARGIN
    if DIMS >= 2:
        H = H - 2 * MARGIN
        y = y - MARGIN
    row = (component.to(tl.int64) * D + z) * H + y
    return row * (W - 2 * MARGIN) + x - MARGIN


@triton.jit
def grad_at(
    grad_map, component, z, y, x, D, H, W, exists, DIMS: tl.constexpr, MARGIN: tl.constexpr, HAS_MAP: tl.constexpr
):
    """The incoming gradient of a voxel's value in the loss map; 1 where the loss is a scalar."""
    if HAS_MAP:
        return tl.load(grad_map + map_index(component, z, y, x, D, H, W, DIMS, MARGIN), mask=exists, other=0.0)
    else:
        return tl.where(exists, 1.0, 0.0)


@triton.jit
def of_component(component, DIMS: tl.constexpr, first, second, third):
    """The number of three that belongs to a component's own axis, which counts from the first existing one."""
    own = component % DIMS
    return tl.where(own == 0, first, tl.where(own == 1, second, third))
