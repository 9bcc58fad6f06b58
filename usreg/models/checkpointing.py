"""Activation checkpointing: parts of a network that keep only their input, and compute the rest again for the gradient.

A part becomes a :class:`_Checkpointed` of its own class. So names of weights stay as they are, copies of a network (the
moving average's) are checkpointed too, and a checkpoint file of a run fits with and without.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class _Checkpointed(nn.Module):
    """Mixed into the class of a part, in front of it."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """What the part returns; of what it computes on the way nothing is kept where a gradient is wanted."""
        if not torch.is_grad_enabled():
            return super().forward(*arguments, **keywords)
        return checkpoint(
            super().forward,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _running_statistics_rest(self)),
            **keywords,
        )


def checkpoint_parts(parts: Iterable[nn.Module]) -> None:
    """Let each part compute its activations a second time in the backward pass, in place of keeping them.

    Values and gradients have the same bits: dropout draws the same numbers again, autocast is as it was, and
    running statistics of batch normalisation take each batch once.

    Args:
        parts: modules of a network. Their tensors must go in and out as arguments and results.
    """
    for part in parts:
        if not isinstance(part, _Checkpointed):
            part.__class__ = _checkpointed(type(part))  # type: ignore[arg-type]  # "Module has no hash"


@functools.cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Checkpointed{kind.__name__}", (_Checkpointed, kind), {})


@contextlib.contextmanager
def _running_statistics_rest(part: nn.Module) -> Iterator[None]:
    """Let the second pass update copies of the running statistics, which the first pass has updated."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
