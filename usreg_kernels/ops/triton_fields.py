"""What the Triton kernels of a displacement field's losses share: where a program's voxels lie, and their neighbours.

A program takes BLOCK voxels of one component that follow on each other in memory, so that any shape fills it. Values of
neighbours come from the caches: each travels from memory once. H and W are constants of the compilation, since dividing
by a variable takes tens of instructions: a field of another height or width compiles its kernels anew.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def extents(field: torch.Tensor) -> tuple[int, int, int]:
    """The sizes along z, y, x of a field (B, n, spatial...); 1 for the axes that it lacks, which come first."""
    sizes = [1] * (5 - field.ndim) + list(field.shape[2:])
    return sizes[0], sizes[1], sizes[2]


def programs(field: torch.Tensor, block: int) -> tuple[int, int]:
    """How many programs of ``block`` voxels a component takes, and how many the field takes."""
    pieces = triton.cdiv(field[0, 0].numel(), block)
    return pieces, field.shape[0] * field.shape[1] * pieces


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
