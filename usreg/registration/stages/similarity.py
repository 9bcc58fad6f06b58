"""The loss of a stage: any loss of the registry, with masks, labels and images of one slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from usreg_kernels.ops.mind_ssc.pairs import pairs

from ...errors import ConfigError
from ...losses import build_loss
from ...losses.call import WARPED_LABEL, LossCall
from ...losses.lncc_dice import DiceTerm
from ...losses.mind import MINDImageLoss
from ...losses.mind_dice import MINDWithDice
from ..inputs.sides import Side, flat_axis
from .levels import Level

LABELS = (*WARPED_LABEL, "fixed_label")
"""Parameters of a loss that compares labels."""


class Similarity:
    """Calls the loss of a stage on packed channels, see :class:`Side`.

    A mask of either side goes to the parameter ``mask`` of the loss: the fixed mask times the warped moving one,
    without a gradient. Labels go to the parameters that :class:`LossCall` knows and, with a weight, to a soft Dice of
    its own. Images of one slice are two-dimensional for the loss.

    The losses ``mind`` and ``mind_dice`` compare descriptors. Those are computed once for each image and level
    (:meth:`described`), and warped in place of the image.

    Args:
        section: of the loss: ``name`` and its keys.
        fixed, moving: the two sides; only their shapes are looked at.
        labels_weight: of the soft Dice of the labels.
        where: of the stage, for messages.

    Raises:
        ConfigError: the loss cannot be built, or does not take what it would need to.
    """

    def __init__(
        self, section: Mapping[str, Any], fixed: Side, moving: Side, labels_weight: float = 0.0, where: str = "stage"
    ) -> None:
        self.flat = flat_axis(fixed.grid)
        dims = 3 if self.flat is None else 2
        loss = build_loss(section, spatial_dims=dims)
        self.channels = self.image_channels = len(fixed.image)
        self.mind: MINDImageLoss | None = None
        if isinstance(loss, MINDImageLoss | MINDWithDice):
            self.mind = loss if isinstance(loss, MINDImageLoss) else loss.image_loss
            self.channels *= len(pairs(dims))
            loss = loss.of_descriptors()
        self.loss = LossCall(loss)
        self.where = f"{where}, loss '{section['name']}'"
        self.labels_weight = labels_weight
        self.masks = fixed.mask is not None, moving.mask is not None
        self.dice = DiceTerm()
        has_labels = fixed.labels is not None and moving.labels is not None
        if labels_weight and not has_labels:
            raise ConfigError(
                f"{self.where}: labels_weight is {labels_weight:g}; give the labels of both images, or the weight 0"
            )
        self.uses_labels = has_labels and (labels_weight > 0 or not set(LABELS).isdisjoint(self.loss.extras))
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
        if self.uses_labels:
            first = [self.channels + there for there in self.masks]
            batch["fixed_label"], batch["warped_label"] = fixed[:, first[0] :], warped[:, first[1] :]
        value = self.loss(warped[:, : self.channels], ddf, batch)
        if self.labels_weight:
            value = value + self.labels_weight * self.dice(batch["warped_label"], batch["fixed_label"])
        return value

    def described(self, levels: Sequence[Level]) -> list[Level]:
        """The levels of a side with the channels that the loss compares: of ``mind``, descriptors for the image's.

        Args:
            levels: of packed channels (1, C, D, H, W).
        """
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
            fixed: the fixed side with the channels that the loss needs.
            factor: of the level, see :meth:`Side.levels`.

        Raises:
            ConfigError: the loss raises a ValueError or TypeError, or returns something else than a finite number.
        """
        image = self.described(fixed.levels([factor]))[0].image
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
