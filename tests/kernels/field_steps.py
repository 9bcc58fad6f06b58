"""What the tests of a field's step share: fields, gradients, states, and the backends that run on CPU tensors."""

from __future__ import annotations

import pytest
import torch
from kernels.cases import takes

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE
from usreg_kernels.ops.triton_backend import INTERPRETED

ON_CPU = ("reference", "cpu", "triton") if INTERPRETED else ("reference", "cpu")
NAMES = [name for name in uk.available_backends("field_adam") if name in ON_CPU]
BACKENDS = pytest.mark.parametrize("backend", NAMES)
FLOATS = (torch.float64, torch.float32)
WITH_DTYPES = pytest.mark.parametrize(
    ("backend", "dtype"), [(name, dtype) for name in NAMES for dtype in FLOATS if takes(name, dtype)], ids=str
)
TOLERANCE = {torch.float64: 1e-12, torch.float32: GRADIENT_TOLERANCE[torch.float32]}


def long_shape(backend: str) -> tuple[int, ...]:
    """A shape that takes several blocks of each of its kernels, with an end of a block and of a vector."""
    return (2, 2, 37, 1013 if backend in ("cpu", "reference") else 61)


def make_field(
    shape: tuple[int, ...] = (2, 3, 5, 6, 7), dtype: torch.dtype = torch.float64, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def make_gradient(field: torch.Tensor, number: int) -> torch.Tensor:
    """Of several sizes in one field, and a ninth of it 0."""
    generator = torch.Generator().manual_seed(1000 + number)
    values = torch.randn(field.shape, generator=generator, dtype=torch.float64)
    sizes = 10 ** torch.randint(-6, 3, field.shape, generator=torch.Generator().manual_seed(7)).double()
    return (values * sizes * (sizes != 1)).to(field.dtype)


def take_steps(optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        for group in optimizer.param_groups:
            for field in group["params"]:
                field.grad = make_gradient(field, number)
        optimizer.step()


def longest_vectors(update: torch.Tensor) -> torch.Tensor:
    """The longest vector of each sample."""
    return update.double().square().sum(1).sqrt().flatten(1).amax(1)


def new_state(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    moments = {name: torch.zeros(shape, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")}
    return {**moments, "step": torch.zeros(())}
