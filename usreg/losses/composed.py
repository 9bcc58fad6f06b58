"""``sum``: a weighted sum of other losses, each with its keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from .call import TOTAL, LossCall
from .terms import FieldLoss, LabelDiceLoss
from .utils import build_loss, check_weights, register_loss

WEIGHT = "weight"
"""The key of a term's section that belongs to the sum."""


class SumLoss(nn.Module):
    """``sum of weight * term``, in a dictionary with the value of each term before it is weighed.

    Args:
        terms: the losses by name; names are those of metrics.csv and of the trackers.
        weights: of each term, 0 or more; a term of weight 0 is computed without a gradient, to be looked at.

    Raises:
        ValueError: there is no term, or a negative weight.
        ConfigError: a term asks for what the loop does not have, or two terms warp labels with different padding.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("terms is empty; it needs one loss or more, each a section with a 'name'")
        check_weights(**{f"the weight of '{name}'": weight for name, weight in weights.items()})
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)
        self._calls: dict[str, LossCall] = {name: LossCall(term) for name, term in terms.items()}
        paddings = {call.label_padding for call in self._calls.values() if call.warps_label}
        if len(paddings) > 1:
            raise ConfigError(
                f"the terms of the sum warp the moving label with label_warp_padding_mode "
                f"{' and '.join(sorted(paddings))}; give all of them the same"
            )
        self.label_warp_padding_mode = next(iter(paddings), "border")
        self.wants = {name for call in self._calls.values() for name in call.extras}
        if any("mask" not in call.extras for name, call in self._calls.items() if not _needs_no_mask(terms[name])):
            self.wants.discard("mask")  # one of the images' terms would leave it out, in silence

    def forward(
        self,
        warped: torch.Tensor,
        fixed: torch.Tensor,
        pred_dvf: torch.Tensor | None = None,
        gt_dvf: torch.Tensor | None = None,
        *,
        moving: torch.Tensor | None = None,
        moving_label: torch.Tensor | None = None,
        fixed_label: torch.Tensor | None = None,
        warped_label: torch.Tensor | None = None,
        moving_mask: torch.Tensor | None = None,
        fixed_mask: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The total under ``loss``, and each term under its name, scalars.

        Args:
            warped, fixed: images (B, 1, D, H, W).
            pred_dvf, gt_dvf: fields (B, 3, D, H, W) in voxels.
            moving, moving_label, fixed_label, warped_label, moving_mask, fixed_mask, mask: what terms may ask for, see
                :class:`usreg.losses.call.LossCall`.
        """
        batch = {
            "fixed": fixed, "dvf": gt_dvf, "moving": moving, "moving_label": moving_label, "fixed_label": fixed_label,
            "warped_label": warped_label, "moving_mask": moving_mask, "fixed_mask": fixed_mask, "mask": mask,
        }  # fmt: skip
        values: dict[str, torch.Tensor] = {}
        total: torch.Tensor | None = None
        for name, call in self._calls.items():
            weight = self.weights[name]
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                value, parts = call.with_terms(warped, pred_dvf, batch)  # type: ignore[arg-type]  # None only by hand
            values |= {name: value, **{f"{name}_{part}": of_part for part, of_part in parts.items()}}
            if weight > 0:
                total = weight * value if total is None else total + weight * value
        return {**values, TOTAL: 0.0 * warped.float().sum() if total is None else total}


def _needs_no_mask(term: nn.Module) -> bool:
    """Whether a term is one of the field or of labels, which a mask of the images does not concern."""
    return isinstance(term, FieldLoss | LabelDiceLoss)


@register_loss("sum")
def create_sum(terms: Sequence[Any], spatial_dims: int = 3, **_: object) -> nn.Module:
    """A weighted sum of losses.

    Args:
        terms: sections, each with the ``name`` of a loss, its keys, and ``weight`` (1.0).
        spatial_dims: for the terms that ask for it: 2 in a registration of slices.
    """
    built: dict[str, nn.Module] = {}
    weights: dict[str, float] = {}
    names: Counter[str] = Counter()
    for number, section in enumerate(terms):
        if not isinstance(section, Mapping):
            raise ConfigError(
                f"terms[{number}] is {section!r}; it must be a section with a 'name', as in {{name: lncc, weight: 1.0}}"
            )
        keys = dict(section)
        weight = keys.pop(WEIGHT, 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ConfigError(f"terms[{number}].weight is {weight!r}; it must be a number of 0 or more")
        try:
            loss = build_loss(keys, spatial_dims=spatial_dims)
        except ConfigError as error:
            raise ConfigError(f"terms[{number}]: {error}") from error
        name = str(keys["name"])
        names[name] += 1
        key = name if names[name] == 1 else f"{name}_{names[name]}"
        built[key], weights[key] = loss, float(weight)
    return SumLoss(built, weights)
