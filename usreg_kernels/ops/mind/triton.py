"""The MIND loss in Triton: two images' slabs side by side; the kernels are those of the descriptor, and one more.

Forward computes the gradients along with the loss: they share the distances, which take most of the time. Backward
multiplies ``grad_output`` in. With reduction ``none`` that is a map, and backward goes through the slabs instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from usreg_kernels.ops.mind.saving import saved_like, scaled
from usreg_kernels.ops.mind_ssc.triton import Volumes, describe, distances, maps_at, store_slopes
from usreg_kernels.ops.triton_backend import device_guard
from usreg_kernels.ops.triton_fields import locate
from usreg_kernels.ops.triton_reduction import finish


@triton.jit
def compare(
    pred_sums, target_sums, pred_means, target_means, mask, grad_map, loss_map, partials, weights, pred_slopes,
    target_slopes, pieces, planes, H: tl.constexpr, W: tl.constexpr, D, first_volume, first_plane, begin, end,
    radius, scale, channels_per_mask, DIMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_GRAD_MAP: tl.constexpr, KEEP_MAP: tl.constexpr, ADD_UP: tl.constexpr,
    PRED: tl.constexpr, TARGET: tl.constexpr,
):  # fmt: skip
    """The loss of a slab's voxels in planes from begin to end, as a map or a sum; slopes by each distance in all.

    weights: partial sums of the mask. PRED, TARGET: whose slopes to write.
    """
    PAIRS: tl.constexpr = 2 * DIMS * (DIMS - 1)
    component, _, index, inside, z, y, x = locate(pieces, planes, H, W, WIDE, BLOCK)
    volume = (first_volume + component).to(tl.int64)
    found = distances(pred_sums, pieces, z, y, x, planes, H, W, radius, scale, inside, PAIRS, BLOCK)
    p, p_excesses, p_inverse, p_free, p_which = describe(found, tl.load(pred_means + volume), PAIRS)
    found = distances(target_sums, pieces, z, y, x, planes, H, W, radius, scale, inside, PAIRS, BLOCK)
    t, t_excesses, t_inverse, t_free, t_which = describe(found, tl.load(target_means + volume), PAIRS)
    at = (volume * D + first_plane) * (H * W)
    weight = tl.where(inside, 1.0, 0.0)
    if HAS_MASK:
        mask_at = ((volume // channels_per_mask) * D + first_plane) * (H * W)
        weight = tl.load(mask + mask_at + index, mask=inside, other=0.0)
    is_own = inside & (z + first_plane >= begin) & (z + first_plane < end)
    if KEEP_MAP or ADD_UP:
        loss = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(PAIRS):
            loss += (p[k] - t[k]) * (p[k] - t[k])
        loss = loss * (1.0 / PAIRS) * weight
        if KEEP_MAP:
            tl.store(loss_map + at + index, loss, mask=is_own)
        if ADD_UP:
            tl.store(partials + tl.program_id(0), tl.sum(tl.where(is_own, loss, 0.0)))
            if HAS_MASK:
                tl.store(weights + tl.program_id(0), tl.sum(tl.where(is_own, weight, 0.0)))
    if PRED or TARGET:
        if HAS_GRAD_MAP:
            weight = weight * tl.load(grad_map + at + index, mask=inside, other=0.0)
        weight = weight * (2.0 / PAIRS)
        incoming = ()
        for k in tl.static_range(PAIRS):
            incoming = incoming + (weight * (p[k] - t[k]),)
        start, place = maps_at(pieces, z, y, x, planes, H, W, PAIRS)
        if PRED:
            store_slopes(
                pred_slopes + start + place, incoming, p, p_excesses, p_inverse, p_free, p_which, 1.0, inside, W, PAIRS
            )  # fmt: skip
        if TARGET:
            store_slopes(
                target_slopes + start + place, incoming, t, t_excesses, t_inverse, t_free, t_which, -1.0, inside,
                W, PAIRS,
            )  # fmt: skip


def _run(
    images: Sequence[torch.Tensor],
    mask: torch.Tensor | None,
    gradients: Sequence[torch.Tensor | None],
    volumes: Volumes,
    grad_map: torch.Tensor | None = None,
    loss_map: torch.Tensor | None = None,
    adds_up: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Go through the slabs: fill the loss map and the gradients there are; return partial sums of loss and mask."""
    means = [volumes.mean_variances(image) for image in images]
    needed = [gradient is not None for gradient in gradients]
    reach = volumes.slopes_reach if any(needed) else 0
    count = 4 if all(needed) else 3
    slabs = volumes.slabs(count, reach)
    spare, *sums = volumes.buffers(slabs, count, reach)
    slopes = [spare, sums.pop()] if all(needed) else [spare if flag else None for flag in needed]
    wide_slabs = [volumes.widened(slab, reach) for slab in slabs]
    programs = [wide.volumes * volumes.programs(wide) for wide in wide_slabs] if adds_up else []
    partials = spare.new_empty((1 if mask is None else 2, sum(programs)))
    weight = None if mask is None else mask.contiguous()
    channels = 1 if mask is None else images[0].shape[1] // mask.shape[1]
    flags = {
        "HAS_MASK": mask is not None,
        "HAS_GRAD_MAP": grad_map is not None,
        "KEEP_MAP": loss_map is not None,
        "ADD_UP": adds_up,
        "PRED": needed[0],
        "TARGET": needed[1],
    }
    first = 0
    for i, (slab, wide) in enumerate(zip(slabs, wide_slabs, strict=True)):
        for image, into in zip(images, sums, strict=True):
            volumes.sum_z_y(image, wide, spare, into)
        parts = [row[first:] if adds_up else None for row in (partials[0], partials[-1])]
        tensors = [*sums, *means, weight, grad_map, loss_map, *parts, *slopes]
        numbers = (volumes.sizes[0], wide.volume, wide.begin, slab.begin, slab.end, volumes.radius, volumes.scale)
        volumes.run(compare, tensors, wide, *numbers, channels, **flags)
        first += programs[i] if adds_up else 0
        for image, found, gradient in zip(images, slopes, gradients, strict=True):
            if gradient is not None:
                assert found is not None
                volumes.write_gradient(image, found, sums[0], slab, gradient)
    return partials[0], None if mask is None else partials[1]


def forward(
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    radius: int,
    dilation: int,
    reduction: str,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss; to save, the divisor and the gradients of the sum."""
    keep_map = reduction == "none"
    loss = pred.new_empty(pred.shape if keep_map else (), dtype=torch.float32)
    saved = saved_like(pred, target, needs_grad=needs_grad, reduction=reduction)
    if pred.numel() == 0:
        return loss.fill_(float("nan") if reduction == "mean" else 0.0), [tensor.fill_(1.0) for tensor in saved]
    images = [pred.contiguous(), target.contiguous()]
    volumes = Volumes(images[0], radius, dilation)
    with device_guard(pred):
        if keep_map:
            _run(images, mask, [None, None], volumes, loss_map=loss)
            return loss, []
        found = iter(saved[1:])
        gradients = [next(found) if saved and needed else None for needed in needs_grad]
        partials, weights = _run(images, mask, gradients, volumes, adds_up=True)
        loss, divisor = finish(partials, *((1, None) if reduction == "sum" else (pred.numel(), weights)))
    return loss, [divisor, *saved[1:]] if saved else []


def backward(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    radius: int,
    dilation: int,
    reduction: str,
    may_overwrite: bool = False,
) -> list[torch.Tensor]:
    """The saved gradients times ``grad_output``; of a map, from the images once more."""
    if not any(needs_grad):
        return []
    if saved:
        return scaled(grad_output, saved, pred.dtype, needs_grad, may_overwrite)
    images = [pred.contiguous(), target.contiguous()]
    gradients = [torch.empty_like(image) if needed else None for image, needed in zip(images, needs_grad, strict=True)]
    if pred.numel():
        with device_guard(pred):
            _run(images, mask, gradients, Volumes(images[0], radius, dilation), grad_output.contiguous())
    return [gradient for gradient in gradients if gradient is not None]
