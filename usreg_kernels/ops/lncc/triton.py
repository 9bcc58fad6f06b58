"""Local normalised cross-correlation in Triton: how the march of ``triton_march`` is launched.

Forward saves the maps that the gradient is made from, 12 bytes per voxel for one gradient and 20 for both, and nothing
when asked for no gradient. ``USREG_LNCC_RECOMPUTE=1`` saves none: backward then computes them once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from usreg_kernels.ops.lncc import triton_tuning
from usreg_kernels.ops.lncc.saving import RECOMPUTE
from usreg_kernels.ops.lncc.triton_march import correlate, propagate
from usreg_kernels.ops.lncc.triton_plan import (
    LARGEST_WITH_ALL_MAPS,
    Tile,
    best_by_counts,
    make_plan,
    map_shape,
    tiles_to_measure,
)
from usreg_kernels.ops.triton_backend import device_guard
from usreg_kernels.ops.triton_reduction import finish
from usreg_kernels.windows import Weights, Window, make_window, trimmed_weights


def _padded(x: torch.Tensor, pitch: int) -> torch.Tensor:
    """x, contiguous, with zeros at the end of its rows up to the pitch: loads as wide as a lane need aligned rows."""
    missing = pitch - x.shape[-1]
    return (F.pad(x, (0, missing)) if missing else x).contiguous()


def _tile(kernel: str, image: torch.Tensor, weights: Weights, sums: int, launch: Callable[[Tile], Any]) -> Tile:
    """The tile of a launch; ``launch`` is called where tiles are measured."""
    by_counts = best_by_counts(tuple(image.shape), weights, kernel == "propagate", sums)
    if not triton_tuning.is_on():
        return by_counts
    name = triton_tuning.key(kernel, image, weights, sums)
    return triton_tuning.choose(name, by_counts, tiles_to_measure(), launch, image.device)


def _correlate(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    maps: torch.Tensor,
    loss_map: torch.Tensor | None,
    window: Window,
    smooth_nr: float,
    smooth_dr: float,
) -> torch.Tensor:
    """Run the forward march: fills the maps and the loss map; returns partial sums (2, n) of the loss and the mask."""
    weights = trimmed_weights(window)
    channels_per_mask = 1
    if mask is not None and mask.shape[1] != pred.shape[1]:
        channels_per_mask = pred.shape[1]
        if len(weights[0]) == 1:  # planes of all volumes are taken as those of one
            mask, channels_per_mask = mask.expand(pred.shape), 1
    mask = None if mask is None else mask.contiguous()

    def launch(tile: Tile) -> tuple[Any, torch.Tensor]:
        plan = make_plan(pred, weights, tile)
        partials = pred.new_empty((2, 0 if loss_map is not None else plan.programs), dtype=torch.float32)
        compiled = correlate[(plan.programs,)](
            _padded(pred, plan.pitch), _padded(target, plan.pitch), mask, loss_map, maps, partials[0], partials[1],
            *plan.runtime_arguments, channels_per_mask, window.volume, 1.0 / window.volume, smooth_nr, smooth_dr,
            HAS_MASK=mask is not None, KEEP_MAP=loss_map is not None, MAPS=maps.shape[-2], **plan.constants,
        )  # fmt: skip
        return compiled, partials

    return launch(_tile("correlate", pred, weights, 5, lambda tile: launch(tile)[0]))[1]


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
    window = make_window(kernel_type, tuple(kernel_size))
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
    window = make_window(kernel_type, tuple(kernel_size))
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
            _propagate(grad_output, divisor, maps, images, written, trimmed_weights(window), reduction)
    return found


def _propagate(
    grad_output: torch.Tensor,
    divisor: torch.Tensor,
    maps: torch.Tensor,
    images: list[torch.Tensor],
    gradients: list[torch.Tensor | None],
    weights: Weights,
    reduction: str,
) -> None:
    """Run the backward march: fills the gradients that are not None."""
    used = _used_maps(maps.shape[-2], [gradient is not None for gradient in gradients])
    if gradients[0] is None:
        images, gradients = images[::-1], gradients[::-1]

    def launch(tile: Tile) -> Any:
        plan = make_plan(images[0], weights, tile)
        incoming = _padded(grad_output, plan.pitch) if reduction == "none" else grad_output
        return propagate[(plan.programs,)](
            incoming, divisor, maps, *images, *gradients, *plan.runtime_arguments, HAS_MAP=reduction == "none",
            MAPS=maps.shape[-2], USED=used, PRED=gradients[0] is not None, TARGET=gradients[1] is not None,
            **plan.constants,
        )  # fmt: skip

    launch(_tile("propagate", images[0], weights, len(used), launch))


def _used_maps(saved: int, needs_grad: list[bool]) -> tuple[int, ...]:
    """Which of the saved maps go into the gradients: that over cross, and two per gradient, first image first."""
    if saved == 3 or all(needs_grad):
        return tuple(range(saved))
    return (0, 1, 2) if needs_grad[0] else (0, 3, 4)
