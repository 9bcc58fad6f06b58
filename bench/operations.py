"""The operations on images and fields that are no losses: what is compared, with which inputs, and what is right.

An operation's run returns what it computed: its output and the gradients that were asked for. The float64 reference's
come from the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

import usreg_kernels as uk
from bench import plain_fields as plain
from bench.contenders import third_party_warnings_ignored
from usreg_kernels.backend import BackendName
from usreg_kernels.optim import FieldAdam

Tensors = list[torch.Tensor]
Function = Callable[..., torch.Tensor]
Build = Callable[[Tensors], Callable[[], Tensors]]
"""Makes a run from inputs."""

OURS = "USReg"
MONAI = "MONAI"
SHIFTS = (-3.0, 3.0)
"""Voxels, the range of displacements: that of a registration under way."""

VELOCITIES = (2.1, 2.9)
"""Voxels, the range of velocities. Halved again and again, no displacement comes near a whole number."""

SIGMA = 1.0
"""Of the smoothing, in voxels."""

LR = 0.1
"""Of the steps, in voxels."""

CELL = 16
"""Voxels from one random value of images and fields to the next; what lies between is interpolated."""


@dataclass(frozen=True)
class Operation:
    """One comparison.

    Attributes:
        op: the op's name.
        title: of the table's row.
        inputs: channels of each input, all on one grid.
        needs_grad: which of them need a gradient; none for a forward pass only.
        contenders: how to build each contender's run, by name; ours first.
        words: of 4 bytes that any implementation reads or writes per voxel.
        shifts: the range of displacements.
        oracle: the backend whose float64 results count as right; None for the automatic choice, which the tests hold
            to the reference, where the reference takes minutes.
    """

    op: str
    title: str
    inputs: tuple[int, ...]
    needs_grad: tuple[bool, ...]
    contenders: dict[str, Build]
    words: int
    shifts: tuple[float, float] = SHIFTS
    oracle: BackendName | None = "reference"

    @property
    def passes(self) -> str:
        """The passes in words."""
        return "forward+backward" if any(self.needs_grad) else "forward"

    def make_inputs(self, spatial: Sequence[int], seed: int, device: str) -> Tensors:
        """Smooth images in [0, 1], and smooth fields where there are three channels.

        Displacements are odd multiples of 1/2048: with a voxel's own coordinate they make a number that float32 holds,
        and that is not a voxel's centre. There the gradient jumps, and rounding would decide which side counts.
        """
        generator = torch.Generator().manual_seed(seed)
        made = [_smooth(channels, spatial, self.shifts, generator).to(device) for channels in self.inputs]
        return [tensor.requires_grad_(flag) for tensor, flag in zip(made, self.needs_grad, strict=True)]

    def least_bytes(self, spatial: Sequence[int]) -> int:
        """What any implementation must move."""
        return 4 * self.words * prod(spatial)

    def reference(self, inputs: Tensors) -> Tensors:
        """What ours computes in float64 by the oracle."""
        wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
        with nullcontext() if self.oracle is None else uk.use_backend(self.oracle):
            return [tensor.detach() for tensor in self.contenders[OURS](wide)()]


def _smooth(
    channels: int, spatial: Sequence[int], shifts: tuple[float, float], generator: torch.Generator
) -> torch.Tensor:
    coarse = [max(2, length // CELL) for length in spatial]
    values = torch.rand(1, channels, *coarse, generator=generator)
    smooth = F.interpolate(values, size=tuple(spatial), mode="trilinear", align_corners=True)
    if channels != len(spatial):
        return smooth
    lowest, highest = shifts
    return (((lowest + (highest - lowest) * smooth) * 1024).floor() + 0.5) / 1024


def differentiated(function: Function, prepare: Callable[[Tensors], Tensors] | None = None) -> Build:
    """A run of a function and, where an input needs one, of the gradient, for an incoming gradient that is not 1.

    Args:
        function: of the inputs.
        prepare: makes other inputs of them beforehand, which is not timed; the gradient is then not compared.
    """

    def build(inputs: Tensors) -> Callable[[], Tensors]:
        given = inputs if prepare is None else prepare(inputs)
        leaves = [tensor for tensor in given if tensor.requires_grad]
        incoming: Tensors = []

        def run() -> Tensors:
            with torch.set_grad_enabled(bool(leaves)):
                output = function(*given)
            if not leaves:
                return [output]
            if not incoming:
                generator = torch.Generator().manual_seed(0)
                incoming.append(torch.rand(output.shape, generator=generator).to(output))
            gradients = torch.autograd.grad(output, leaves, incoming[0])
            return [output.detach(), *(gradients if prepare is None else ())]

        return run

    return build


@cache
def _monai(block: str, **arguments: Any) -> Function:
    """A block of MONAI's, which keeps its grid of coordinates."""
    with third_party_warnings_ignored():
        from monai.networks import blocks

        made: Function = getattr(blocks, block)(**arguments)
    return made


def _monai_warp(image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
    return _monai("Warp")(image, ddf)


def _monai_compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    return inner + _monai("Warp")(outer, inner)


def _monai_integrate(velocity: torch.Tensor) -> torch.Tensor:
    return _monai("DVF2DDF", padding_mode="border")(velocity)


def _warp(channels: int, needs_grad: tuple[bool, bool], title: str, words: int) -> Operation:
    contenders = {
        OURS: differentiated(uk.warp),
        MONAI: differentiated(_monai_warp),
        "VoxelMorph's formula": differentiated(plain.voxelmorph_warp),
        "PyTorch grid_sample, ready grid": differentiated(plain.sample, plain.ready_grid),
    }
    return Operation("warp", title, (channels, 3), needs_grad, contenders, words)


def stepped(start: Callable[[torch.Tensor], Callable[[], object]]) -> Build:
    """A run of a step of an optimizer, from a field of zeros; what is compared is the field after the first one.

    Args:
        start: makes the function that takes a step, from a field whose gradient is set.
    """

    def build(inputs: Tensors) -> Callable[[], Tensors]:
        (gradient,) = inputs
        field = torch.zeros_like(gradient).requires_grad_()
        field.grad = gradient
        step = start(field)

        def run() -> Tensors:
            step()
            return [field.detach()]

        return run

    return build


def _steps() -> list[Operation]:
    """Adam in place: three components of gradient, moments and field are read, and all but the gradient written."""
    plain_step = {
        OURS: stepped(lambda field: FieldAdam([field], LR).step),
        "torch.optim.Adam": stepped(lambda field: torch.optim.Adam([field], LR).step),
        "torch.optim.Adam, fused": stepped(lambda field: torch.optim.Adam([field], LR, fused=True).step),
    }
    scaled_step = {
        OURS: stepped(lambda field: FieldAdam([field], LR, scale="longest").step),
        "plain PyTorch": stepped(lambda field: plain.LongestAdam(field, LR).step),
    }
    return [
        Operation("field_adam", "Adam step", (3,), (False,), plain_step, words=21),
        Operation("field_adam", "Adam step, longest vector given", (3,), (False,), scaled_step, words=27),
    ]


def _smoothing(needs_grad: tuple[bool], title: str, words: int) -> Operation:
    contenders = {
        OURS: differentiated(partial(uk.gaussian_smooth, sigma=SIGMA)),
        "PyTorch conv3d, an axis at a time": differentiated(partial(plain.smooth_by_convolution, sigma=SIGMA)),
        "PyTorch, shifted sums": differentiated(partial(plain.smooth_by_sums, sigma=SIGMA)),
    }
    return Operation("gaussian_smooth", title, (3,), needs_grad, contenders, words)


def _determinant(needs_grad: tuple[bool], title: str, words: int) -> Operation:
    contenders = {
        OURS: differentiated(uk.jacobian_determinant),
        "PyTorch gradient": differentiated(plain.jacobian_determinant),
    }
    return Operation("jacobian_determinant", title, (3,), needs_grad, contenders, words)


def operations() -> list[Operation]:
    """All comparisons."""
    to_field, to_both, forward = (False, True), (True, True), (False, False)
    return [
        _warp(1, forward, "warp", words=5),
        _warp(1, to_field, "warp, gradient to the field", words=13),
        _warp(3, to_field, "warp, 3 channels, gradient to the field", words=21),
        _warp(12, to_field, "warp, 12 channels, gradient to the field", words=57),
        _warp(1, to_both, "warp, gradients to field and image", words=14),
        Operation(
            "compose_ddf",
            "composition",
            (3, 3),
            forward,
            {OURS: differentiated(uk.compose_ddf), MONAI: differentiated(_monai_compose)},
            words=9,
        ),
        Operation(
            "integrate_velocity",
            "integration of a velocity field",
            (3,),
            (True,),
            {
                OURS: differentiated(partial(uk.integrate_velocity, padding_mode="border")),
                MONAI: differentiated(_monai_integrate),
            },
            words=15,
            shifts=VELOCITIES,
            oracle=None,
        ),
        _smoothing((False,), "Gaussian smoothing, 3 channels", words=6),
        _smoothing((True,), "Gaussian smoothing, 3 channels, with gradient", words=12),
        *_steps(),
        _determinant((False,), "Jacobian determinant", words=4),
        _determinant((True,), "Jacobian determinant, with gradient", words=11),
    ]
