"""Warp in Triton. Nothing is saved: a coordinate is a few operations on the displacement.

One pass over the output finds its values, one the gradients of field and affine, three that of the image.
Composition is a warp to which the field is added.

The image's gradient is a sum over all voxels that look at it. Floating-point atomics would add in another order on
every run. So gradients are scaled by a power of two and added as 64-bit integers, whose sum has the same bits in any
order: one pass finds the largest incoming gradient, from which the power follows, one adds, one converts. All of it
stays on the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from usreg_kernels.ops.triton_backend import OPTIONS, device_guard
from usreg_kernels.ops.warp.native import PADDING_CODES
from usreg_kernels.ops.warp.triton_gather import add_up, pull, slopes
from usreg_kernels.ops.warp.triton_scatter import convert, measure, scatter

BLOCK = 128  # output voxels of a program: one per thread
TURNS = 16  # blocks of a program that adds up for the affine's gradient
FLAT_BLOCK = 1024  # of programs that take voxels one after the other


class Call(NamedTuple):
    """A warp: its contiguous tensors, and what the kernels need to know of it.

    Attributes:
        image: (B, C, spatial...).
        field, affine: or None.
        size: of the output, along the same axes.
        mode: of interpolation.
        padding_mode: outside the image.
        composes: whether the field is added to the values.
    """

    image: torch.Tensor
    field: torch.Tensor | None
    affine: torch.Tensor | None
    size: torch.Size
    mode: str
    padding_mode: str
    composes: bool

    @property
    def voxels(self) -> int:
        """The voxels of a channel of the output."""
        return self.size.numel()

    @property
    def image_voxels(self) -> int:
        """The voxels of a channel of the image."""
        return self.image.shape[2:].numel()

    @property
    def is_empty(self) -> bool:
        """Whether there is no output voxel."""
        return self.image.shape[0] * self.voxels == 0

    def pieces(self, turns: int = 1) -> int:
        """Programs per image of the batch."""
        return triton.cdiv(self.voxels, BLOCK * turns)

    def numbers(self, turns: int = 1) -> list[int]:
        """What each kernel takes after its own arguments: pieces, channels, voxels, image_voxels, D, H, W, ..."""
        missing = [1] * (5 - self.image.ndim)
        image_sizes, sizes = [*missing, *self.image.shape[2:]], [*missing, *self.size]
        return [self.pieces(turns), self.image.shape[1], self.voxels, self.image_voxels, *image_sizes, *sizes[1:]]

    def constants(self) -> dict[str, Any]:
        """Constants for the compilation of each kernel that looks at the image."""
        return {
            "DIMS": self.image.ndim - 2,
            "PADDING": PADDING_CODES[self.padding_mode],
            "WIDE": torch.Size(length + 1 for length in self.image.shape[2:]).numel() >= 2**31,
            "WIDE_OUT": self.voxels + BLOCK * TURNS >= 2**31,
            "BLOCK": BLOCK,
            **OPTIONS,
        }


def make_call(
    image: torch.Tensor,
    ddf: torch.Tensor | None,
    affine: torch.Tensor | None,
    size: list[int],
    mode: str,
    padding_mode: str,
    composes: bool = False,
) -> Call:
    """The call of a warp with these arguments."""
    field = None if ddf is None else ddf.contiguous()
    matrix = None if affine is None else affine.contiguous()
    return Call(image.contiguous(), field, matrix, torch.Size(size), mode, padding_mode, composes)


def values(call: Call) -> torch.Tensor:
    """The output, (B, C, size...)."""
    image = call.image
    output = image.new_empty((*image.shape[:2], *call.size), dtype=torch.float32)
    if output.numel():
        with device_guard(image):
            pull[(image.shape[0] * call.pieces(),)](
                image, call.field, call.affine, output, *call.numbers(),
                NEAREST=call.mode == "nearest", COMPOSES=call.composes, **call.constants(),
            )  # fmt: skip
    return output


def gradients(call: Call, grad_output: torch.Tensor, needs_grad: list[bool]) -> list[torch.Tensor]:
    """The gradients to image, field and affine, of those that are needed."""
    grad = grad_output.contiguous()
    with device_guard(call.image):
        found = [_image_gradient(call, grad)] if needs_grad[0] else []
        return found + _coordinate_gradients(call, grad, needs_grad[1], needs_grad[2])


def _coordinate_gradients(call: Call, grad: torch.Tensor, to_field: bool, to_affine: bool) -> list[torch.Tensor]:
    image, field, affine = call.image, call.field, call.affine
    needed = [t for t, asked in ((field, to_field), (affine, to_affine)) if asked and t is not None]
    if not needed:
        return []
    if call.is_empty or call.mode == "nearest":
        return [torch.zeros_like(tensor) for tensor in needed]
    found = [torch.empty_like(tensor) for tensor in needed]
    turns = TURNS if to_affine else 1
    pieces = call.pieces(turns)
    partials = (
        image.new_empty((affine.numel(), pieces), dtype=torch.float32) if affine is not None and to_affine else None
    )
    slopes[(image.shape[0] * pieces,)](
        grad, image, field, affine, found[0] if to_field else None, partials, *call.numbers(turns),
        COMPOSES=call.composes, TURNS=turns, **call.constants(),
    )  # fmt: skip
    if partials is not None:
        add_up[(partials.shape[0],)](partials, found[-1], pieces, BLOCK=FLAT_BLOCK, **OPTIONS)
    return found


def _image_gradient(call: Call, grad: torch.Tensor) -> torch.Tensor:
    image = call.image
    if grad.numel() == 0:
        return torch.zeros_like(image)
    gradient = torch.empty_like(image)
    memory = torch.zeros(image.numel() + 1, dtype=torch.int64, device=image.device)
    sums, state = memory[:-1], memory[-1:].view(torch.int32)
    count_bits = (call.voxels - 1).bit_length()
    measure[(triton.cdiv(grad.numel(), FLAT_BLOCK),)](grad, state, grad.numel(), BLOCK=FLAT_BLOCK, **OPTIONS)
    scatter[(image.shape[0] * call.pieces(),)](
        grad, call.field, call.affine, sums, state, count_bits, *call.numbers(),
        NEAREST=call.mode == "nearest", **call.constants(),
    )  # fmt: skip
    convert[(triton.cdiv(image.numel(), FLAT_BLOCK),)](
        sums, state, gradient, count_bits, image.numel(), BLOCK=FLAT_BLOCK, **OPTIONS
    )
    return gradient


def forward(
    image: torch.Tensor, ddf: torch.Tensor | None, affine: torch.Tensor | None, *, needs_grad: list[bool], **params: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The warped image; nothing is saved."""
    return values(make_call(image, ddf, affine, **params)), []


def backward(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    image: torch.Tensor,
    ddf: torch.Tensor | None,
    affine: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    **params: Any,
) -> list[torch.Tensor]:
    """The gradients to the image, the field and the affine, of those that are needed."""
    return gradients(make_call(image, ddf, affine, **params), grad_output, needs_grad)
