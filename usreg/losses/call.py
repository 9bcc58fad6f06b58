"""How a loss is called: found once from its signature, so that an error raised inside the loss is never hidden."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..models.warp import warp

logger = logging.getLogger(__name__)

BATCH_TENSORS = ("moving", "moving_label", "fixed_label", "moving_mask", "fixed_mask", "mask")
"""Tensors of a batch that a loss may ask for by a parameter of the same name."""

WARPED_LABEL = ("warped_label", "warped_moving_label")
"""Two names of one tensor."""

FIELDS = ("pred_dvf", "gt_dvf")
"""The third and the fourth argument of a loss of fields, in this order."""

EXTRAS = (*BATCH_TENSORS, *WARPED_LABEL, *FIELDS)
"""Every name that a further parameter of a loss may have: those of the batch, and what the loop derives."""

TOTAL = "loss"
"""The entry to minimise of a loss that returns its terms in a dictionary."""

CONTRACT = (
    "a loss is called as forward(warped, fixed), or as forward(warped, fixed, pred_dvf, gt_dvf) where it takes four "
    f"positional arguments; further parameters, keyword-only or not, may be named {', '.join(EXTRAS)}"
)

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class FunctionLoss(nn.Module):
    """A plain function as a loss module.

    Args:
        function: called as a loss with the same signature is.
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any, **extras: Any) -> torch.Tensor:
        """What the function returns."""
        return self.function(*arguments, **extras)


class LossCall:
    """Calls a loss with what its signature asks for.

    The first two parameters get ``warped`` and ``fixed``. Further ones named in :data:`EXTRAS` are filled by name,
    wherever they stand, with None where the batch lacks the tensor. A third and a fourth parameter of other names, in a
    module whose ``forward`` takes four or more positional arguments, get ``pred_dvf`` and ``gt_dvf`` unless they have a
    default other than None; a warning in the log says so. ``*args`` gets all four. ``gt_dvf`` is None where the batch
    has no ``dvf``. A plain function is filled by name only.

    ``warped_label``, or ``warped_moving_label``, is the moving label under the predicted field, linear and
    differentiable. Outside the volume it goes on as an attribute ``label_warp_padding_mode`` of the loss says:
    ``border`` where there is none. ``mask`` is what a registration of a pair passes for the part of the fixed grid that
    counts, (B, 1, D, H, W) from 0 to 1; it is None in training. A loss that takes more than it uses may name what it
    wants in an attribute ``wants``.

    Args:
        loss: the loss module, possibly wrapped (``torch.compile``, a parallel wrapper) or a plain function.

    Raises:
        ConfigError: the loss needs arguments that the loop does not have.
    """

    def __init__(self, loss: Callable[..., Any]) -> None:
        self.loss = loss
        self.label_padding: str = getattr(_innermost(loss), "label_warp_padding_mode", "border")
        signature = inspect.signature(_signed(loss))
        parameters = list(signature.parameters.values())
        positional = [p for p in parameters if p.kind in POSITIONAL]
        takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        keyword_only = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        wanted = [(p, p.name if p.name in EXTRAS else None) for p in (*positional[2:], *keyword_only)]
        if isinstance(_innermost(loss), nn.Module) and not isinstance(_innermost(loss), FunctionLoss):
            wanted = _with_fields_by_place(wanted, len(positional), type(loss).__name__)

        wants = getattr(_innermost(loss), "wants", None)
        if wants is not None:
            wanted = [(p, key if key in (*FIELDS, *wants) else None) for p, key in wanted]

        self._by_place: tuple[str, ...] = ()
        if takes_any and tuple(key for _, key in wanted[: len(positional[2:])]) == FIELDS[: len(positional[2:])]:
            self._by_place = FIELDS
        else:
            for parameter, key in wanted:
                if key is None or parameter.kind not in POSITIONAL:
                    break
                self._by_place += (key,)
        by_name = [(p, key) for p, key in wanted[min(len(self._by_place), len(positional[2:])) :] if key is not None]
        self._by_name = {p.name: key for p, key in by_name if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
        filled = (*self._by_place, *self._by_name.values())
        self.dvf_aware = set(FIELDS) <= set(filled)
        self.extras = tuple(key for key in filled if key not in FIELDS)
        self.warps_label = not set(WARPED_LABEL).isdisjoint(filled)

        unfilled = [p for p, key in wanted if key is None]
        needed = [p.name for p in unfilled if p.default is inspect.Parameter.empty]
        if needed or (len(positional) < 2 and not takes_any):
            needs = f"; nothing is known to pass as {', '.join(needed)}" if needed else ""
            raise ConfigError(
                f"{type(loss).__name__}.forward{signature} cannot be called by the loop{needs}: {CONTRACT}"
            )
        if left := [p.name for p in unfilled if p.default is None and p.kind in POSITIONAL]:
            logger.warning(
                "%s: %s stays None, since nothing has such a name; further parameters of a loss may be named %s",
                *(type(loss).__name__, ", ".join(left), ", ".join(EXTRAS)),
            )

    def __call__(self, warped: torch.Tensor, ddf: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a batch, a scalar: of a loss that returns a dictionary, its entry ``loss``.

        Args:
            warped: the warped moving image, (B, 1, D, H, W).
            ddf: the predicted field, (B, 3, D, H, W), voxels, order z, y, x.
            batch: the batch that the prediction was made from; ``fixed`` and, where present, ``dvf``, labels and masks.
                A ``warped_label`` in it is taken as it is.
        """
        return self.with_terms(warped, ddf, batch)[0]

    def with_terms(
        self, warped: torch.Tensor, ddf: torch.Tensor, batch: Mapping[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch, and without a gradient its terms by name where it returns a dictionary of them.

        Raises:
            ConfigError: the dictionary has no entry ``loss``.
        """
        known = {"pred_dvf": ddf, "gt_dvf": batch.get("dvf")}
        if self.warps_label:
            known |= dict.fromkeys(WARPED_LABEL, self._warped_label(ddf, batch))
        values = [known[key] if key in known else batch.get(key) for key in (*self._by_place, *self._by_name.values())]
        places = len(self._by_place)
        result = self.loss(
            warped, batch["fixed"], *values[:places], **dict(zip(self._by_name, values[places:], strict=True))
        )
        if not isinstance(result, Mapping):
            return result, {}
        if TOTAL not in result:
            raise ConfigError(
                f"{type(self.loss).__name__} returned a dictionary of {', '.join(map(str, result)) or 'nothing'}; it "
                f"needs an entry '{TOTAL}', the one number to minimise, beside its terms"
            )
        return result[TOTAL], {str(name): _detached(term) for name, term in result.items() if name != TOTAL}

    def _warped_label(self, ddf: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor | None:
        if batch.get("warped_label") is not None:
            return batch["warped_label"]
        label = batch.get("moving_label")
        return None if label is None else warp(label, ddf, padding_mode=self.label_padding)


Wanted = list[tuple[inspect.Parameter, "str | None"]]
"""The parameters of a loss from the third on, and what fills each; None for one that keeps its default."""


def _with_fields_by_place(wanted: Wanted, positional: int, loss: str) -> Wanted:
    """The third and the fourth of four positional parameters get the fields, whatever their names.

    Not where one of the two has the name of another tensor, nor where a number or a text is the default.
    """
    pair = wanted[:2]
    if positional < 4 or any(key is not None and key not in FIELDS for _, key in pair):
        return wanted
    names = {key for _, key in wanted}
    filled = [
        (p, field if key is None and field not in names and p.default in (None, inspect.Parameter.empty) else key)
        for (p, key), field in zip(pair, FIELDS, strict=True)
    ]
    renamed = {p.name: key for (p, key), (_, before) in zip(filled, pair, strict=True) if key != before}
    if renamed:
        logger.warning(
            "%s: %s by their places, the third and the fourth; give them these names to be sure of what they get",
            *(loss, ", ".join(f"{name} gets {key}" for name, key in renamed.items())),
        )
    return [*filled, *wanted[2:]]


def _detached(term: Any) -> torch.Tensor:
    return term.detach() if isinstance(term, torch.Tensor) else torch.tensor(float(term))


def _signed(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The callable whose signature counts: the forward of a module, looked up below wrappers that take anything."""
    inner = _innermost(loss)
    if isinstance(inner, FunctionLoss):
        return inner.function
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
