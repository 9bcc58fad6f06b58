"""A step of Adam in Triton: one pass over gradient, moments and field; two where the longest vector gives the scale.

A first kernel of one program counts the step, and computes what follows from the count once for all. In the scaled step
each program of the first pass writes the longest direction that it has seen; a program per sample finds the longest of
these. There are no atomics, and a maximum is exact: the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.triton_backend import OPTIONS, device_guard

BLOCK = 1024
"""Values, or voxels, per program."""

CHUNK = 1024
"""Partial maxima that a sample's last program takes per turn."""


@triton.jit
def count_step(step, numbers, lr, rest1, rest2):
    """One more step; numbers: 1 / sqrt(1 - beta2^step), and the plain step's -lr / (1 - beta1^step)."""
    count = tl.load(step) + 1
    tl.store(step, count)
    # Powers in float64, by squaring. Python's numbers come as float32, in which 1 - beta keeps its digits.
    left = count.to(tl.int32)
    power1 = tl.zeros((), tl.float64) + 1.0
    power2 = power1
    factor1, factor2 = power1 - rest1, power1 - rest2
    while left > 0:
        odd = left % 2 == 1
        power1, power2 = tl.where(odd, power1 * factor1, power1), tl.where(odd, power2 * factor2, power2)
        factor1, factor2 = factor1 * factor1, factor2 * factor2
        left = left // 2
    tl.store(numbers, (1.0 / tl.sqrt(1.0 - power2)).to(tl.float32))
    tl.store(numbers + 1, (-lr / (1.0 - power1)).to(tl.float32))


@triton.jit
def _direction(first, second, root, eps):
    return first / (tl.sqrt(second) * root + eps)


@triton.jit
def _update(grad, exp_avg, exp_avg_sq, place, inside, rest1, rest2):
    """The new moments, which are stored."""
    gradient = tl.load(grad + place, mask=inside, other=0.0)
    first = tl.load(exp_avg + place, mask=inside, other=0.0) * (1.0 - rest1) + gradient * rest1
    second = tl.load(exp_avg_sq + place, mask=inside, other=0.0) * (1.0 - rest2) + gradient * gradient * rest2
    tl.store(exp_avg + place, first, mask=inside)
    tl.store(exp_avg_sq + place, second, mask=inside)
    return first, second


@triton.jit
def step_field(
    grad, exp_avg, exp_avg_sq, field, numbers, size, rest1, rest2, eps, REPLACE: tl.constexpr, BLOCK: tl.constexpr
):
    """The plain step of a piece of the field."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    first, second = _update(grad, exp_avg, exp_avg_sq, place, inside, rest1, rest2)
    value = _direction(first, second, tl.load(numbers), eps) * tl.load(numbers + 1)
    if not REPLACE:
        value += tl.load(field + place, mask=inside, other=0.0)
    tl.store(field + place, value, mask=inside)


@triton.jit
def update_moments(
    grad, exp_avg, exp_avg_sq, numbers, longest, voxels, pieces, rest1, rest2, eps,
    DIMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The moments of a piece of a sample, and the bits of the squared length of its longest direction.

    As integers, numbers above 0 keep their order, and NaN is above all.
    """
    sample = tl.program_id(0) // pieces
    voxel = (tl.program_id(0) % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = voxel < voxels
    place = sample.to(tl.int64) * DIMS * voxels + voxel
    root = tl.load(numbers)
    square = tl.zeros((BLOCK,), tl.float32)
    for _ in tl.static_range(DIMS):
        first, second = _update(grad, exp_avg, exp_avg_sq, place, inside, rest1, rest2)
        direction = _direction(first, second, root, eps)
        # NaN where the square of a gradient has overflowed: the direction is 0 there.
        square += direction * direction + (second - second)
        place += voxels
    bits = square.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.store(longest + tl.program_id(0), tl.max(tl.where(inside, bits, 0)))


@triton.jit
def find_scale(longest, scales, pieces, lr, BLOCK: tl.constexpr):
    """The scale of a sample, from the squared lengths that its pieces have found."""
    sample = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    most = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, pieces, BLOCK):
        inside = start + index < pieces
        most = tl.maximum(most, tl.load(longest + sample.to(tl.int64) * pieces + start + index, mask=inside, other=0))
    bits = tl.max(most)
    square = bits.to(tl.float32, bitcast=True)
    scale = -lr / tl.sqrt(square)
    scale = tl.where(bits < 0x7F800000, scale, float("nan"))
    tl.store(scales + sample, tl.where(bits == 0, 0.0, scale))


@triton.jit
def write_field(
    exp_avg, exp_avg_sq, field, numbers, scales, size, pieces, eps, REPLACE: tl.constexpr, BLOCK: tl.constexpr
):
    """The scaled step of a piece of a sample, whose moments are new."""
    sample = tl.program_id(0) // pieces
    start = (tl.program_id(0) % pieces).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    inside = start + index < size
    place = sample.to(tl.int64) * size + start + index
    first = tl.load(exp_avg + place, mask=inside, other=0.0)
    second = tl.load(exp_avg_sq + place, mask=inside, other=0.0)
    value = _direction(first, second, tl.load(numbers), eps) * tl.load(scales + sample)
    if not REPLACE:
        value += tl.load(field + place, mask=inside, other=0.0)
    tl.store(field + place, value, mask=inside)


def run(
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: torch.Tensor,
    field: torch.Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    longest: bool,
    replace: bool,
) -> None:
    """Contiguous float32 tensors."""
    rest1, rest2 = 1.0 - beta1, 1.0 - beta2
    numbers = torch.empty(2, dtype=torch.float32, device=grad.device)
    moments = grad, exp_avg, exp_avg_sq
    with device_guard(grad):
        count_step[(1,)](step, numbers, lr, rest1, rest2, num_warps=1, **OPTIONS)
        if grad.numel() == 0:
            return
        if not longest:
            step_field[(triton.cdiv(grad.numel(), BLOCK),)](
                *moments, field, numbers, grad.numel(), rest1, rest2, eps, REPLACE=replace, BLOCK=BLOCK, **OPTIONS
            )
            return
        samples, voxels, size = grad.shape[0], grad[0, 0].numel(), grad[0].numel()
        pieces, parts = triton.cdiv(voxels, BLOCK), triton.cdiv(size, BLOCK)
        squares = torch.empty(samples * pieces, dtype=torch.int32, device=grad.device)
        scales = torch.empty(samples, dtype=torch.float32, device=grad.device)
        update_moments[(samples * pieces,)](
            *moments, numbers, squares, voxels, pieces, rest1, rest2, eps, DIMS=grad.shape[1], BLOCK=BLOCK, **OPTIONS
        )
        find_scale[(samples,)](squares, scales, pieces, lr, BLOCK=CHUNK, **OPTIONS)
        write_field[(samples * parts,)](
            exp_avg, exp_avg_sq, field, numbers, scales, size, parts, eps, REPLACE=replace, BLOCK=BLOCK, **OPTIONS
        )
