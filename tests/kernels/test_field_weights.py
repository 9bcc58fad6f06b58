"""The weights of the losses of displacement fields, against the formulas of docs/losses.md written out."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import usreg_kernels as uk

SIZES = (4, 7, 5)
SPACING = (0.5, 2.0, 3.0)


def _field() -> torch.Tensor:
    return torch.randn(2, 3, *SIZES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("penalty", "scheme", "normalize", "reduction"),
    list(product(("l1", "l2"), ("forward", "central"), (False, True), ("mean", "sum"))),
)
def test_smoothness_is_the_sum_over_axes_of_reduced_penalties(
    penalty: str, scheme: str, normalize: bool, reduction: str
) -> None:
    dvf = _field()
    expected = torch.zeros((), dtype=torch.float64)
    inner = tuple(slice(1, -1) for _ in SIZES)
    for axis, size in enumerate(SIZES):
        if scheme == "forward":
            derivative = dvf.diff(dim=axis + 2)
        else:
            derivative = torch.gradient(dvf, dim=axis + 2)[0][(..., *inner)]
        derivative = derivative / SPACING[axis]
        if normalize:
            derivative = derivative * size / torch.tensor(SIZES).reshape(3, 1, 1, 1)
        value = derivative.abs() if penalty == "l1" else derivative**2
        expected += value.mean() if reduction == "mean" else value.sum()
    with uk.use_backend("reference"):
        found = uk.gradient_smoothness_loss(
            dvf, penalty=penalty, scheme=scheme, spacing=SPACING, normalize=normalize, reduction=reduction
        )
    torch.testing.assert_close(found, expected, rtol=1e-6 if normalize else 1e-12, atol=0)  # its ratios are float32


@pytest.mark.parametrize(("normalize", "reduction"), list(product((False, True), ("mean", "sum"))))
def test_bending_energy_is_that_of_second_derivatives(normalize: bool, reduction: str) -> None:
    dvf = _field()
    inner = (..., *(slice(1, -1) for _ in SIZES))
    energy = torch.zeros(())
    for first, second in product(range(3), repeat=2):  # so that pairs of two axes count twice
        if first == second:
            centre = dvf.narrow(first + 2, 1, SIZES[first] - 2)
            ends = dvf.narrow(first + 2, 2, SIZES[first] - 2) + dvf.narrow(first + 2, 0, SIZES[first] - 2)
            derivative = torch.zeros_like(dvf)
            derivative.narrow(first + 2, 1, SIZES[first] - 2).copy_(ends - 2 * centre)
        else:
            derivative = torch.gradient(torch.gradient(dvf, dim=first + 2)[0], dim=second + 2)[0]
        if normalize:
            derivative = derivative * SIZES[first] * SIZES[second] / torch.tensor(SIZES).reshape(3, 1, 1, 1)
        energy = energy + derivative[inner] ** 2
    with uk.use_backend("reference"):
        found = uk.bending_energy_loss(dvf, normalize=normalize, reduction=reduction)
    expected = energy.mean() if reduction == "mean" else energy.sum()
    torch.testing.assert_close(found, expected, rtol=1e-6 if normalize else 1e-12, atol=0)
