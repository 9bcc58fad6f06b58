"""The compiled MIND-SSC descriptor: C++ on CPUs (``csrc/cpu/mind``), CUDA C++ on GPUs (``csrc/cuda/mind``).

Nothing is saved for backward.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import StatelessBackend, define_stateless

define_stateless("mind_ssc", "Tensor image, int radius, int dilation")


class Native(StatelessBackend):
    """Twice through the image each way: for the mean of V, and for the descriptor or its gradient."""

    op = "mind_ssc"

    def arguments(self, image: torch.Tensor, radius: int, dilation: int) -> tuple[Any, ...]:
        """Those of the op."""
        return radius, dilation
