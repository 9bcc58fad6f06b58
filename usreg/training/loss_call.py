"""How the loop calls a loss: found once from its signature, so that an error raised inside the loss is never hidden."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..models.warp import warp

BATCH_TENSORS = ("moving", "moving_label", "fixed_label", "moving_mask", "fixed_mask", "mask")
"""Tensors of a batch that a loss may ask for by a keyword-only parameter of the same name."""

WARPED_LABEL = ("warped_label", "warped_moving_label")
"""Two names of one tensor."""

EXTRAS = (*BATCH_TENSORS, *WARPED_LABEL, "pred_dvf", "gt_dvf")
"""Every name that a keyword parameter of a loss may have: those of the batch, and what the loop derives."""

CONTRACT = (
    "a loss is called as forward(warped, fixed), or as forward(warped, fixed, pred_dvf, gt_dvf) where it takes four "
    f"positional arguments; further parameters, keyword-only or not, may be named {', '.join(EXTRAS)}"
)

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class LossCall:
    """Calls a loss with what its signature asks for.

    A loss whose ``forward`` takes four positional arguments (or ``*args``) gets ``(warped, fixed, pred_dvf, gt_dvf)``,
    ``gt_dvf`` being None where the batch has no ``dvf``; any other gets ``(warped, fixed)``. Further parameters named
    in :data:`EXTRAS`, keyword-only or not, are filled by name, with None where the batch lacks the tensor.
    ``warped_label``, or ``warped_moving_label``, is the moving label under the predicted field, linear and
    differentiable. Outside the volume it goes on as an attribute ``label_warp_padding_mode`` of the loss says:
    ``border`` where there is none. ``mask`` is what a registration of a pair passes for the part of the fixed grid that
    counts, (B, 1, D, H, W) from 0 to 1; it is None in training.

    Args:
        loss: the loss module, possibly wrapped (``torch.compile``, a parallel wrapper) or a plain function.

    Raises:
        ConfigError: the loss needs arguments that the loop does not have.
    """

    def __init__(self, loss: Callable[..., torch.Tensor]) -> None:
        self.loss = loss
        self.label_padding: str = getattr(_innermost(loss), "label_warp_padding_mode", "border")
        signature = inspect.signature(_signed(loss))
        parameters = list(signature.parameters.values())
        positional = [p for p in parameters if p.kind in POSITIONAL]
        takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        keyword_only = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]

        by_name = any(p.name in (*BATCH_TENSORS, *WARPED_LABEL) for p in positional[2:4])
        self.dvf_aware = takes_any or (len(positional) >= 4 and not by_name)
        given = 4 if self.dvf_aware else 2
        self.extras = tuple(p.name for p in (*positional[given:], *keyword_only) if p.name in EXTRAS)
        rest = [p for p in positional[given:] if p.name not in EXTRAS]
        unfilled = [p.name for p in rest if p.default is inspect.Parameter.empty]
        unfilled += [p.name for p in keyword_only if p.name not in EXTRAS and p.default is inspect.Parameter.empty]
        if unfilled or (len(positional) < 2 and not takes_any):
            needs = f"; nothing is known to pass as {', '.join(unfilled)}" if unfilled else ""
            raise ConfigError(
                f"{type(loss).__name__}.forward{signature} cannot be called by the loop{needs}: {CONTRACT}"
            )

    def __call__(self, warped: torch.Tensor, ddf: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a batch, a scalar.

        Args:
            warped: the warped moving image, (B, 1, D, H, W).
            ddf: the predicted field, (B, 3, D, H, W), voxels, order z, y, x.
            batch: the batch that the prediction was made from; ``fixed`` and, where present, ``dvf``, labels and masks.
                A ``warped_label`` in it is taken as it is.
        """
        arguments = [warped, batch["fixed"]]
        if self.dvf_aware:
            arguments += [ddf, batch.get("dvf")]
        known = {"pred_dvf": ddf, "gt_dvf": batch.get("dvf")}
        if wanted := set(self.extras).intersection(WARPED_LABEL):
            known |= dict.fromkeys(wanted, self._warped_label(ddf, batch))
        extras = {name: known[name] if name in known else batch.get(name) for name in self.extras}
        return self.loss(*arguments, **extras)

    def _warped_label(self, ddf: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor | None:
        if "warped_label" in batch:
            return batch["warped_label"]
        label = batch.get("moving_label")
        return None if label is None else warp(label, ddf, padding_mode=self.label_padding)


def _signed(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The callable whose signature counts: the forward of a module, looked up below wrappers that take anything."""
    inner = _innermost(loss)
    return inner.forward if isinstance(inner, nn.Module) else inner


def _innermost(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss below wrappers that take anything."""
    if isinstance(loss, nn.Module):
        for wrapped in ("_orig_mod", "module"):  # torch.compile's name, and that of the parallel wrappers
            inner = getattr(loss, wrapped, None)
            if isinstance(inner, nn.Module) and _takes_anything(loss.forward):
                return _innermost(inner)
    return loss


def _takes_anything(function: Callable[..., Any]) -> bool:
    """Whether a signature says no more than ``*args, **kwargs``."""
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    return kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
