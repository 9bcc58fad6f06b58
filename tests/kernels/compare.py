"""How the kernel tests compare: one tolerance table per dtype, and vectors rather than elements."""

from __future__ import annotations

import torch

# Relative errors (L2 norm of the difference over that of the oracle) against the float64 reference. A loss is at least
# float32; a gradient has the dtype of its input.
LOSS_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}
GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """L2 norm of the difference over that of ``expected``; the plain norm where that is 0; NaN stays NaN."""
    difference = (actual.double() - expected.double()).norm().item()
    norm = expected.double().norm().item()
    return difference / norm if norm else difference


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, floor: float = 0.0) -> None:
    """Same shape, and a relative error within the tolerance (NaN fails), or a plain error norm within the floor.

    Where ``expected`` overflows the dtype of ``actual``, this must be the same infinity.
    """
    assert actual.shape == expected.shape
    rounded = expected.to(actual.dtype)
    overflow = rounded.isinf()
    assert torch.equal(actual[overflow], rounded[overflow])
    actual, expected = actual[~overflow], expected[~overflow]
    if expected.numel():
        error = relative_error(actual, expected)
        small = (actual.double() - expected.double()).norm().item() <= floor
        assert error <= tolerance or small, f"relative error {error:.3g} exceeds {tolerance:.3g}"
