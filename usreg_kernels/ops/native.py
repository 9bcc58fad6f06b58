"""What the compiled backends of all ops share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from usreg_kernels import dispatch, library

REDUCTION_CODES = {"none": 0, "mean": 1, "sum": 2}
"""The codes of ``enum class Reduction`` in ``csrc/common``."""


def declines(device_type: str) -> Callable[..., str | None]:
    """Why a compiled backend of one device cannot take a call: it takes every call on its device."""

    def why_not(tensors: tuple[torch.Tensor | None, ...], **params: Any) -> str | None:
        device = tensors[0].device  # type: ignore[union-attr]
        if device.type == device_type:
            return None
        return f"it runs on {device_type} tensors, and these are on {device}"

    return why_not


def register(
    op: str,
    forward: Callable[..., tuple[torch.Tensor, list[torch.Tensor]]],
    backward: Callable[..., list[torch.Tensor]],
    saved_like: Callable[..., list[torch.Tensor]] = dispatch.Backend.saved_like,
    backward_in_place: Callable[..., list[torch.Tensor]] | None = None,
    names: Sequence[str] = ("cpu", "cuda"),
) -> None:
    """Register an op's compiled backends, one per library; they differ in what torch calls for a device.

    Args:
        op: the op's name.
        forward, backward, backward_in_place: as in :class:`usreg_kernels.dispatch.Backend`, but for a first argument:
            the namespace of ``torch.ops`` that holds the kernels.
        saved_like: as there.
        names: of the backends, which are those of their libraries and devices.
    """
    for name in names:
        dispatch.register_backend(
            op,
            dispatch.Backend(
                name,
                partial(forward, torch.ops.usreg),
                partial(backward, torch.ops.usreg),
                saved_like,
                None if backward_in_place is None else partial(backward_in_place, torch.ops.usreg),
                missing=partial(library.reason, name),
                declines=declines(name),
            ),
        )
