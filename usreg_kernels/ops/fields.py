"""What the losses of displacement fields share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def size_ratios(shape: Sequence[int], numerator: int) -> list[float]:
    """``numerator`` / (size of the component's own axis) for each component of a field (B, n, spatial...).

    For the ``normalize`` option. Rounded to float32 whatever the field's dtype, because MONAI 1.6 rounds it so: a
    reciprocal, then a product.
    """
    sizes = np.array(shape[2:], dtype=np.float32)
    return [float(ratio) for ratio in np.float32(1) / sizes * np.float32(numerator)]


def per_component(values: Sequence[float], u: torch.Tensor) -> torch.Tensor:
    """One number per component, in the shape in which it multiplies u (B, n, spatial...)."""
    return torch.tensor(values, dtype=u.dtype, device=u.device).reshape(1, -1, *[1] * (u.ndim - 2))
