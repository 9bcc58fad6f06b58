"""How the kernel tests compare: vectors rather than elements. The tolerances are those of :mod:`tools.tolerances`."""

from __future__ import annotations

import torch


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
