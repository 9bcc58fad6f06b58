"""Local normalised cross-correlation in Triton: how the march of ``triton_march`` is launched.

Forward saves the maps that the gradient is made from, 12 bytes per voxel for one gradient and 20 for both, and nothing
when asked for no gradient. ``USREG_LNCC_RECOMPUTE=1`` saves none: backward then computes them once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from usreg_kernels.ops.lncc import triton_tuning
from usreg_kernels.ops.lncc.saving import RECOMPUTE
from usreg_kernels.ops.lncc.triton_march import NUMBERS, correlate, propagate
from usreg_kernels.ops.lncc.triton_plan import (
    LARGEST_WITH_ALL_MAPS,
    Plan,
    Tile,
    best_by_counts,
    make_plan,
    map_shape,
    registers_of,
    tiles_to_measure,
)
from usreg_kernels.ops.triton_backend import device_guard
from usreg_kernels.ops.triton_reduction import finish
from usreg_kernels.windows import make_window, trimmed_weights

_WindowKey = tuple[str, tuple[int, ...]]
"""Kernel type, and sizes."""

_SOME_NUMBERS = (2,) * len(NUMBERS)  # machine code is the same for all of them


def _padded(x: torch.Tensor, pitch: int) -> torch.Tensor:
    """x, contiguous, with zeros at the end of its rows up to the pitch: loads as wide as a lane need aligned rows."""
    missing = pitch - x.shape[-1]
    return (F.pad(x, (0, missing)) if missing else x).contiguous()


def _registers(kernel: Any, arguments: tuple[Any, ...], device: torch.device) -> Callable[..., int | None]:
    """What make_plan asks for a kernel's registers; nobody knows them of an interpreted kernel."""
    return partial(registers_of, kernel, arguments) if device.type == "cuda" else lambda constants: None


@lru_cache(maxsize=1024)
def _plan_correlate(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    window: _WindowKey,
    masked: bool,
    keep_map: bool,
    maps: int,
    tile: Tile | None = None,
) -> Plan:
    """The launch of correlate, with the tile by counts unless one is given."""
    weights = trimmed_weights(make_window(*window))
    tile = tile or best_by_counts(shape, weights, False, 5)
    flags = {"HAS_MASK": masked, "KEEP_MAP": keep_map, "MAPS": maps}
    float32 = torch.float32
    tensors = (dtype, dtype, float32 if masked else None, float32 if keep_map else None, float32, float32, float32)
    arguments = (*tensors, *_SOME_NUMBERS, 2, 0.5, 0.5, 0.5, 0.5)
    return make_plan(shape, weights, tile, flags, device, _registers(correlate, arguments, device))


@lru_cache(maxsize=1024)
def _plan_propagate(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    window: _WindowKey,
    has_map: bool,
    maps: int,
    needs_grad: tuple[bool, bool],
    tile: Tile | None = None,
) -> Plan:
    """The launch of propagate, with the tile by counts unless one is given."""
    weights = trimmed_weights(make_window(*window))
    used = _used_maps(maps, needs_grad)
    tile = tile or best_by_counts(shape, weights, True, len(used))
    both = all(needs_grad)
    flags = {"HAS_MAP": has_map, "MAPS": maps, "USED": used, "PRED": True, "TARGET": both}
    tensors = (torch.float32, torch.float64, torch.float32, dtype, dtype, dtype, dtype if both else None)
    return make_plan(shape, weights, tile, flags, device, _registers(propagate, (*tensors, *_SOME_NUMBERS), device))


def _used_maps(saved: int, needs_grad: tuple[bool, bool]) -> tuple[int, ...]:
    """Which of the saved maps go into the gradients: by_cross, then constant and slope of each gradient's image.

    The constant comes before the slope: the other way round, some kernels take a quarter more registers.
    """
    if all(needs_grad):
        return 0, 2, 1, 4, 3
    return (0, 2, 1) if saved == 3 or needs_grad[0] else (0, 4, 3)


def _measured(
    kernel: str, image: torch.Tensor, window: _WindowKey, sums: int, launch: Callable[[Tile | None], Any]
) -> Tile | None:
    """The tile of a launch, from the file of measured tiles; None for the tile by counts."""
    if not triton_tuning.is_on():
        return None
    weights = trimmed_weights(make_window(*window))
    by_counts = best_by_counts(image.shape, weights, kernel == "propagate", sums)
    name = triton_tuning.key(kernel, image, weights, sums)
    return triton_tuning.choose(name, by_counts, tiles_to_measure(), launch, image.device)


def _correlate(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    maps: torch.Tensor,
    loss_map: torch.Tensor | None,
    window: _WindowKey,
    smooth_nr: float,
    smooth_dr: float,
) -> torch.Tensor:
    """Run the forward march: fills the maps and the loss map; returns partial sums (2, n) of the loss and the mask."""
    key = (pred.shape, pred.dtype, pred.device, window, mask is not None, loss_map is not None, maps.shape[-2])
    volume = make_window(*window).volume

    def launch(tile: Tile | None) -> tuple[Any, torch.Tensor]:
        plan = _plan_correlate(*key, tile)
        partials = pred.new_empty((2, 0 if loss_map is not None else plan.programs), dtype=torch.float32)
        weights, channels_per_weight = _mask_of(plan, mask, pred)
        compiled = correlate[(plan.programs,)](
            _padded(pred, plan.pitch), _padded(target, plan.pitch), weights, loss_map, maps, partials[0], partials[1],
            *plan.numbers, channels_per_weight, volume, 1.0 / volume, smooth_nr, smooth_dr, **plan.constants,
        )  # fmt: skip
        return compiled, partials

    return launch(_measured("correlate", pred, window, 5, lambda tile: launch(tile)[0]))[1]


def _mask_of(plan: Plan, mask: torch.Tensor | None, pred: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    """The mask as the kernel reads it, and how many volumes each of its volumes weighs."""
    if mask is None or mask.shape[1] == pred.shape[1]:
        return None if mask is None else mask.contiguous(), 1
    if plan.joins_planes:
        return mask.contiguous(), pred.shape[1]
    return mask.expand(pred.shape).contiguous(), 1


def forward(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    kernel_size: list[int],
    kernel_type: str,
    reduction: str,
    smooth_nr: float,
    smooth_dr: float,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss; to save, the divisor of the mean and the maps."""
    window = kernel_type, tuple(kernel_size)
    keep_map = reduction == "none"
    loss = pred.new_empty(pred.shape if keep_map else (), dtype=torch.float32)
    divisor = pred.new_ones((), dtype=torch.float64)
    maps = pred.new_empty(map_shape(pred.shape, [] if RECOMPUTE else needs_grad), dtype=torch.float32)
    if pred.numel() == 0:
        return loss.fill_(float("nan") if reduction == "mean" else 0.0), [divisor, maps]
    if needs_grad == [False, True]:
        pred, target = target, pred  # the correlation is symmetric, and three maps serve the first
    with device_guard(pred):
        partials = _correlate(pred, target, mask, maps, loss if keep_map else None, window, smooth_nr, smooth_dr)
        if reduction == "sum":
            loss, _ = finish(partials[0], 1)
        elif reduction == "mean":
            loss, divisor = finish(partials[0], pred.numel(), None if mask is None else partials[1])
    return loss, [divisor, maps]


def saved_like(pred: torch.Tensor, *_: Any, needs_grad: list[bool], **params: Any) -> list[torch.Tensor]:
    """The divisor, and the maps."""
    maps = pred.new_empty(map_shape(pred.shape, [] if RECOMPUTE else needs_grad), dtype=torch.float32)
    return [pred.new_empty((), dtype=torch.float64), maps]


def backward(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    kernel_size: list[int],
    kernel_type: str,
    reduction: str,
    smooth_nr: float,
    smooth_dr: float,
) -> list[torch.Tensor]:
    """The gradients, from the maps."""
    divisor, maps = saved
    images = [pred.contiguous(), target.contiguous()]
    gradients = [torch.empty_like(image) if needed else None for image, needed in zip(images, needs_grad, strict=True)]
    found = [gradient for gradient in gradients if gradient is not None]
    if not found or pred.numel() == 0:
        return found
    window = kernel_type, tuple(kernel_size)
    with device_guard(pred):
        if maps.numel() == 0:
            ordered = images[::-1] if needs_grad == [False, True] else images
            maps = pred.new_empty(map_shape(pred.shape, needs_grad), dtype=torch.float32)
            _correlate(ordered[0], ordered[1], mask, maps, None, window, smooth_nr, smooth_dr)
        if all(needs_grad) and max(kernel_size) > LARGEST_WITH_ALL_MAPS:
            marches = [[True, False], [False, True]]
        else:
            marches = [needs_grad]
        for wanted in marches:
            written = [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]
            _propagate(grad_output, divisor, maps, images, written, window, reduction)
    return found


def _propagate(
    grad_output: torch.Tensor,
    divisor: torch.Tensor,
    maps: torch.Tensor,
    images: list[torch.Tensor],
    gradients: list[torch.Tensor | None],
    window: _WindowKey,
    reduction: str,
) -> None:
    """Run the backward march: fills the gradients that are not None."""
    wanted = gradients[0] is not None, gradients[1] is not None
    if not wanted[0]:
        images, gradients = images[::-1], gradients[::-1]
    key = (images[0].shape, images[0].dtype, images[0].device, window, reduction == "none", maps.shape[-2], wanted)

    def launch(tile: Tile | None) -> Any:
        plan = _plan_propagate(*key, tile)
        incoming = _padded(grad_output, plan.pitch) if reduction == "none" else grad_output
        return propagate[(plan.programs,)](
            incoming, divisor, maps, *images, *gradients, *plan.numbers, **plan.constants
        )  # fmt: skip

    sums = maps.shape[-2] if all(wanted) else 3
    launch(_measured("propagate", images[0], window, sums, launch))
