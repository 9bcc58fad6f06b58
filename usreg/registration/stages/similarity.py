"""The loss of a stage: any loss of the registry, with masks, labels and images of one slice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from usreg_kernels.ops.mind_ssc.pairs import pairs

from ...errors import ConfigError
from ...losses import build_loss
from ...losses.call import WARPED_LABEL, LossCall
from ...losses.mind import MINDImageLoss
from ...losses.mind_dice import MINDWithDice
from ..inputs.sides import Side, flat_axis
from .levels import Level
from .overlap import Overlap

LOST = 0.75
"""The most of a mask that its margin may take."""

LABELS = (*WARPED_LABEL, "fixed_label")
"""Parameters of a loss that compares labels."""


class Similarity:
    """Calls the loss of a stage on packed channels, see :class:`Side`.

    A mask of either side goes to the parameter ``mask`` of the loss: the fixed mask times the warped moving one,
    without a gradient. Labels go to the parameters that :class:`LossCall` knows, as channels of their own. With a
    weight they also go into a term of their own beside the loss, see :class:`Overlap`. Images of one slice are
    two-dimensional for the loss.

    The losses ``mind`` and ``mind_dice`` compare descriptors. Those are computed once for each image and level
    (:meth:`described`), and warped in place of the image.

    Args:
        section: of the loss: ``name`` and its keys.
        fixed, moving: the two sides; only their shapes are looked at.
        labels_weight: of the soft Dice of the labels.
        where: of the stage, for messages.
        mask_margin: whether masks lose a margin as wide as the loss sees, see :func:`with_margin`.

    Raises:
        ConfigError: the loss cannot be built, or does not take what it would need to.
    """

    def __init__(
        self,
        section: Mapping[str, Any],
        fixed: Side,
        moving: Side,
        labels_weight: float = 0.0,
        where: str = "stage",
        mask_margin: bool = False,
    ) -> None:
        self.flat = flat_axis(fixed.grid)
        dims = 3 if self.flat is None else 2
        loss = build_loss(section, spatial_dims=dims)
        self.channels = self.image_channels = len(fixed.image)
        self.margin = max(getattr(part, "reach", 0) for part in loss.modules()) if mask_margin else 0
        self.mind: MINDImageLoss | None = None
        if isinstance(loss, MINDImageLoss | MINDWithDice):
            self.mind = loss if isinstance(loss, MINDImageLoss) else loss.image_loss
            self.channels *= len(pairs(dims))
            loss = loss.of_descriptors()
        self.loss = LossCall(loss)
        self.where = f"{where}, loss '{section['name']}'"
        self.labels_weight = labels_weight
        self.masks = fixed.mask is not None, moving.mask is not None
        has_labels = fixed.labels is not None and moving.labels is not None
        if labels_weight and not has_labels:
            raise ConfigError(
                f"{self.where}: labels_weight is {labels_weight:g}; give the labels of both images, or the weight 0"
            )
        self.packs_labels = has_labels and not set(LABELS).isdisjoint(self.loss.extras)
        if any(self.masks) and "mask" not in self.loss.extras:
            raise ConfigError(
                f"{self.where}: a mask is given, and this loss has no parameter 'mask' in its forward. Take lncc, mse, "
                "mutual_information, mind, mind_dice, lncc_smooth or lncc_dice, give the loss such a parameter, or "
                "leave the mask out"
            )

    def __call__(self, warped: torch.Tensor, fixed: torch.Tensor, ddf: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            warped: (1, C', D, H, W), the packed channels of the moving side under the field.
            fixed: (1, C'', D, H, W), those of the fixed side.
            ddf: (1, 3, D, H, W) voxels; None for 0.
        """
        if ddf is None:
            ddf = fixed.new_zeros(1, 3, 1, 1, 1).expand(1, 3, *fixed.shape[2:])
        if self.flat is not None:
            warped, fixed, ddf = self.plane(warped), self.plane(fixed), self.plane_field(ddf)
        batch: dict[str, Any] = {"fixed": fixed[:, : self.channels]}
        if any(self.masks):
            parts = [
                part[:, self.channels : self.channels + 1]
                for part, there in zip((fixed, warped.detach()), self.masks, strict=True)
                if there
            ]
            batch["mask"] = parts[0] * parts[1] if all(self.masks) else parts[0]
        if self.packs_labels:
            first = [self.channels + there for there in self.masks]
            batch["fixed_label"], batch["warped_label"] = fixed[:, first[0] :], warped[:, first[1] :]
        return self.loss(warped[:, : self.channels], ddf, batch)

    def levels(self, fixed: Side, moving: Side, factors: Sequence[float]) -> tuple[list[Level], list[Level]]:
        """Both sides on levels, with the channels that the loss compares, and the term of the labels.

        Args:
            factors: see :meth:`Side.levels`.
        """
        has_fixed, has_moving = self.masks
        targets = self.described(fixed.levels(factors, labels=self.packs_labels), has_fixed)
        sources = self.described(moving.levels(factors, moving=True, labels=self.packs_labels), has_moving)
        if self.labels_weight:
            labels = zip(fixed.label_levels(factors), moving.label_levels(factors, moving=True), strict=True)
            sources = [
                dataclasses.replace(level, overlap=Overlap(*both, self.labels_weight))
                for level, both in zip(sources, labels, strict=True)
            ]
        return targets, sources

    def described(self, levels: Sequence[Level], has_mask: bool) -> list[Level]:
        """The levels of a side with the channels that the loss compares: of ``mind``, descriptors for the image's.

        Args:
            levels: of packed channels (1, C, D, H, W).
            has_mask: whether the side has a mask, which then loses its margin.
        """
        if has_mask and self.margin:
            levels = [Level(self._without_margin(level.image), level.grid) for level in levels]
        if self.mind is None:
            return list(levels)
        found = []
        for level in levels:
            image, rest = level.image[:, : self.image_channels], level.image[:, self.image_channels :]
            descriptor = self.mind.descriptor(self.plane(image))
            if self.flat is not None:
                descriptor = descriptor.unsqueeze(2 + self.flat)
            found.append(Level(torch.cat([descriptor, rest], dim=1), level.grid))
        return found

    def _without_margin(self, packed: torch.Tensor) -> torch.Tensor:
        first, last = self.image_channels, self.image_channels + 1
        mask = with_margin(packed[:, first:last], self.margin)
        return torch.cat([packed[:, :first], mask, packed[:, last:]], dim=1)

    def plane(self, volume: torch.Tensor) -> torch.Tensor:
        """(1, C, D, H, W) of one slice as (1, C, H, W)."""
        return volume if self.flat is None else volume.squeeze(2 + self.flat)

    def plane_field(self, ddf: torch.Tensor) -> torch.Tensor:
        """(1, 3, D, H, W) of one slice as a field in the plane, (1, 2, H, W)."""
        if self.flat is None:
            return ddf
        return self.plane(ddf)[:, [axis for axis in range(3) if axis != self.flat]]

    def try_out(self, fixed: Side, factor: float) -> None:
        """Call the loss once with the fixed image for both, so that what it refuses is found before any work.

        Args:
            fixed: the fixed side.
            factor: of the level, see :meth:`Side.levels`.

        Raises:
            ConfigError: the loss raises a ValueError or TypeError, or returns something else than a finite number.
        """
        image = self.described(fixed.levels([factor], labels=self.packs_labels), self.masks[0])[0].image
        parts = [image[:, : self.channels], image[:, self.channels + self.masks[0] :]]
        if self.masks[1]:
            parts.insert(1, torch.ones_like(image[:, :1]))
        warped = torch.cat(parts, dim=1)
        try:
            value = self(warped, image)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.where}: the loss cannot use these images: {error}") from error
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            given = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ConfigError(f"{self.where}: the loss must return one number to minimise, not {given}")
        if not bool(value.isfinite()):
            raise ConfigError(f"{self.where}: the loss of the fixed image with itself is {float(value)}")


def with_margin(mask: torch.Tensor, margin: int) -> torch.Tensor:
    """A mask without its outermost voxels: 0 where a voxel outside of the mask or the image is nearer than the margin.

    The margin is narrower where the mask would lose more than :data:`LOST` of its sum, as on coarse levels.

    Args:
        mask: (1, 1, D, H, W) from 0 to 1.
        margin: voxels along each axis; axes of one voxel have none.
    """
    found, least = mask, (1 - LOST) * float(mask.sum())
    widths = [0 if length == 1 else 1 for length in mask.shape[2:]]
    pad = [width for axis in reversed(widths) for width in (axis, axis)]
    for _ in range(margin):
        padded = functional.pad(found, pad)
        smaller = -functional.max_pool3d(-padded, [2 * width + 1 for width in widths], stride=1)
        if float(smaller.sum()) < least:
            break
        found = smaller
    return found
