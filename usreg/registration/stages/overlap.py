"""The overlap of labels beside the loss of a stage: soft Dice of many structures, one after another.

A structure is warped only in the box where it can be seen, and its part of the gradient is added up at once. So 30
structures take the memory of one, and the time of the voxels in their boxes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from usreg_kernels import warp

from ...losses.lncc_dice import DiceTerm
from ..inputs.structures import Box, Crop, Structures

Places = NDArray[np.float64]


@dataclass(frozen=True)
class Overlap:
    """``weight * (1 - soft Dice)`` of labels: the mean over the structures that either side has.

    Attributes:
        fixed: on the grid of the result.
        moving: on the grid that the field or the affine leads to; outside it goes on as its edge.
        weight: of the term.
        dice: of one structure.
    """

    fixed: Structures
    moving: Structures
    weight: float = 1.0
    dice: DiceTerm = field(default_factory=DiceTerm)

    def of_field(self, ddf: torch.Tensor) -> torch.Tensor:
        """The term under a displacement field: a scalar with a gradient to the field.

        Args:
            ddf: (1, 3, D, H, W) on the fixed grid, voxels of the moving one.
        """
        return _Term.apply(ddf, self, _Field(ddf.detach()))

    def of_affine(self, affine: torch.Tensor) -> torch.Tensor:
        """The term under an affine: a scalar with a gradient to the affine.

        Args:
            affine: (3, 4), from voxels of the fixed grid to voxels of the moving one.
        """
        return _Term.apply(affine, self, _Matrix(affine.detach()))


class _Field:
    """Warps structures with a displacement field, each in a box of the fixed grid."""

    def __init__(self, ddf: torch.Tensor) -> None:
        ends = torch.stack([torch.stack(ddf[0, axis].aminmax()) for axis in range(ddf.shape[1])], dim=1)
        self.least, self.most = ends.double().cpu().numpy()

    def places(self, first: Places, last: Places) -> tuple[Places, Places]:
        """The ends, along each axis, of where the field can lead from into what lies between two corners."""
        return first - self.most, last - self.least

    def part(self, ddf: torch.Tensor, box: Box) -> torch.Tensor:
        """What of the field, or of its gradient, belongs to a box: a view."""
        return box.of(ddf)

    def warped(self, part: torch.Tensor, crop: Crop, box: Box) -> torch.Tensor:
        """(1, 1, *box.size): the structure as the box sees it."""
        shift = torch.eye(3, 4)
        shift[:, 3] = torch.tensor(np.subtract(box.first, crop.box.first))
        return warp(crop.values[None, None], part, affine=shift.to(part))


class _Matrix:
    """Warps structures with an affine, each in a box of the fixed grid; see :class:`_Field`."""

    def __init__(self, affine: torch.Tensor) -> None:
        self.turn, self.shift = affine.double().cpu().numpy()[:, :3], affine.double().cpu().numpy()[:, 3]

    def places(self, first: Places, last: Places) -> tuple[Places, Places]:
        corners = np.array(list(itertools.product(*zip(first, last, strict=True))))
        if not (np.isfinite(corners).all() and np.isfinite(self.turn).all() and np.linalg.det(self.turn)):
            return np.full(3, np.nan), np.full(3, np.nan)
        found = np.linalg.solve(self.turn, (corners - self.shift).T)
        return found.min(axis=1), found.max(axis=1)

    def part(self, affine: torch.Tensor, box: Box) -> torch.Tensor:
        return affine

    def warped(self, part: torch.Tensor, crop: Crop, box: Box) -> torch.Tensor:
        first = torch.tensor(box.first, dtype=part.dtype, device=part.device)
        begin = torch.tensor(crop.box.first, dtype=part.dtype, device=part.device)
        moved = torch.cat([part[:, :3], (part[:, 3] + part[:, :3] @ first - begin)[:, None]], dim=1)
        return warp(crop.values[None, None], affine=moved.to(crop.values), size=box.size)


class _Term(torch.autograd.Function):
    """Value and gradient of an :class:`Overlap` in one go: no structure is kept for a backward pass."""

    @staticmethod
    def forward(ctx: Any, where: torch.Tensor, overlap: Overlap, by: _Field | _Matrix) -> torch.Tensor:
        needs_grad = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(where) if needs_grad else None
        total, count = torch.zeros((), device=where.device), torch.zeros((), device=where.device)
        for fixed, moving in zip(overlap.fixed.crops, overlap.moving.crops, strict=True):
            boxes = [] if fixed is None else [fixed.box]
            if moving is not None and (seen := _box_of(moving.box, by, overlap)) is not None:
                boxes.append(seen)
            if not boxes:
                continue
            box = boxes[0].around(boxes[-1])
            target = torch.zeros(box.size, device=where.device) if fixed is None else fixed.on(box)
            with torch.enable_grad():
                part = by.part(where, box).detach().requires_grad_(needs_grad)
                warped = torch.zeros_like(target)[None, None] if moving is None else by.warped(part, moving, box)
                missed = overlap.dice(warped, target[None, None])  # 0 of a structure that is nowhere
                if gradient is not None and moving is not None:
                    (found,) = torch.autograd.grad(missed, part)
                    by.part(gradient, box).add_(found)
            total += missed.detach()
            count += 1 if fixed is not None else (warped.detach() != 0).any()
        scale = overlap.weight / count.clamp(min=1)
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(scale))
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None


def _box_of(crop: Box, by: _Field | _Matrix, overlap: Overlap) -> Box | None:
    """The fixed voxels that can see a moving structure; None where none can.

    At an end of the moving grid the structure goes on. Where the ends are not finite, every voxel counts.
    """
    first, last = np.array(crop.first, dtype=float), np.array(crop.last, dtype=float) - 1
    first[first == 0] = -np.inf
    last[last == np.array(overlap.moving.size) - 1] = np.inf
    first, last = by.places(first, last)
    size = np.array(overlap.fixed.size)
    begin = np.clip(np.floor(np.nan_to_num(first, nan=-np.inf)), 0, size).astype(int)
    end = np.clip(np.ceil(np.nan_to_num(last, nan=np.inf)) + 1, 0, size).astype(int)
    return Box(tuple(begin.tolist()), tuple(end.tolist())) if bool((begin < end).all()) else None
