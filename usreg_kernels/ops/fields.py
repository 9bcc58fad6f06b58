"""What the losses of displacement fields share."""

from __future__ import annotations

import torch


def size_ratio(u: torch.Tensor, numerator: int) -> torch.Tensor:
    """``numerator`` / (size of each component's own axis), (1, n, 1...), for the ``normalize`` option.

    Rounded to float32 whatever the dtype of u (B, n, spatial...), because MONAI 1.6 rounds it so.
    """
    sizes = torch.tensor(u.shape[2:], dtype=torch.float32)
    return (numerator / sizes).to(u).reshape(1, -1, *[1] * (u.ndim - 2))
