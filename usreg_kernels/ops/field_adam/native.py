"""The compiled step of Adam: C++ on CPUs (``csrc/cpu/field_adam``), CUDA C++ on GPUs (``csrc/cuda/field_adam``)."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import CompiledBackend
from usreg_kernels.ops.operator import LIBRARY

LIBRARY.define(
    "field_adam_native_step(Tensor grad, Tensor(a!) exp_avg, Tensor(b!) exp_avg_sq, Tensor(c!) step, Tensor(d!) field, "
    "float lr, float beta1, float beta2, float eps, bool longest, bool replace) -> ()"
)


class Native(CompiledBackend):
    """One pass over gradient, moments and field; two where the longest vector gives the scale."""

    def run(self, *tensors: torch.Tensor, **params: Any) -> None:
        """Contiguous tensors of one dtype; the step is a float32 scalar."""
        self.kernels.field_adam_native_step(*tensors, **params)
