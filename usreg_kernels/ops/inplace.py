"""Ops that change tensors in place and have no gradient, such as the step of an optimizer.

Each is one operator in the namespace ``usreg``, with a schema that names what it changes::

    <op>(<tensors>, *, <params>, str backend) -> ()

so that ``torch.compile`` keeps the order of reads and writes. As for other ops
(:mod:`usreg_kernels.ops.operator`), the backend is chosen before the call, and plain tensors take a shorter way to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from usreg_kernels import dispatch
from usreg_kernels.backend import Backend
from usreg_kernels.ops import eager
from usreg_kernels.ops.operator import LIBRARY


class InplaceReference(Backend):
    """The plain PyTorch formulas of an op's ``reference.py``."""

    name = "reference"

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def run(self, *tensors: torch.Tensor, **params: Any) -> None:
        """On any device."""
        self.module.run(*tensors, **params)


@dataclass(frozen=True)
class InplaceOp:
    """One op that works in place; calling it chooses a backend and runs it.

    Attributes:
        name: the operator's name in the namespace ``usreg``.
        tensors: as a schema writes them: ``"Tensor grad"``, or ``"Tensor(a!) exp_avg"`` for one that changes.
        params: the keyword-only part of the schema.
        reference: module with ``run(*tensors, **params)``, in plain PyTorch.
        backends: the others; their ``run`` gets contiguous tensors.
    """

    name: str
    tensors: tuple[str, ...]
    params: str
    reference: ModuleType
    backends: Sequence[Backend]

    def __post_init__(self) -> None:
        schema = f"{self.name}({', '.join(self.tensors)}, *, {self.params}, str backend) -> ()"
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(self.name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"usreg::{self.name}", lambda *tensors, **params: None, lib=LIBRARY)
        for backend in (InplaceReference(self.reference), *self.backends):
            dispatch.register_backend(self.name, backend)

    def __call__(self, *tensors: torch.Tensor, **params: Any) -> None:
        """Run with checked arguments, under ``torch.no_grad()``.

        Raises:
            Explained: the call is one of ``explain``.
            BackendError: the explicitly chosen backend cannot take it.
        """
        plain = [eager.without_subclass(tensor) for tensor in tensors]
        if dispatch.is_explaining():
            raise dispatch.Explained(dispatch.explain_call(self.name, plain, params))
        name = dispatch.select(self.name, plain, params)
        if eager.is_transformed():
            self.reference.run(*plain, **params)
        elif eager.nobody_looks_on(plain):
            self._run(*plain, **params, backend=name)
        else:
            self.operator(*plain, **params, backend=name)

    @property
    def operator(self) -> Any:
        """The registered operator."""
        return getattr(torch.ops.usreg, self.name).default

    def _run(self, *tensors: Any, backend: str, **params: Any) -> None:
        dispatch.warn_if_slow(self.name, backend, tensors)
        work = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors]
        dispatch.get_backend(self.name, backend).run(*work, **params)
        changed = [(t, w) for t, w, text in zip(tensors, work, self.tensors, strict=True) if "!" in text]
        for tensor, worked in changed:
            if worked is not tensor:
                tensor.copy_(worked)
        # Autograd then refuses a backward pass that needs the values from before; torch sees no write of a kernel.
        torch.autograd.graph.increment_version([tensor for tensor, _ in changed])
