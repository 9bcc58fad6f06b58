"""Random warps, compositions, squarings and smoothings: every fast backend against the float64 reference.

Displacements and affines are multiples of 1/32 and 1/4, which every dtype holds exactly. So coordinates on the centre
of a voxel or on the border stay there in all of them. A velocity is squared once: further coordinates would be rounded.
``USREG_RANDOM_CASES`` sets how many cases run, a third of them here (600 unless set).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.cases import DTYPES
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels.fields import FUNCTIONS, INTERPOLATIONS, PADDING_MODES

CASES = int(os.environ.get("USREG_RANDOM_CASES", "1800")) // 3
OPS = ("warp", "compose_ddf", "integrate_velocity", "gaussian_smooth")
FAST = [(op, backend) for op in OPS for backend in uk.available_backends(op) if backend == "cpu"]

Call = tuple[dict[str, torch.Tensor], dict[str, Any]]


def _multiples(shape: tuple[int, ...], step: float, most: float, seed: int) -> torch.Tensor:
    """Multiples of ``step`` from ``-most`` to ``most``."""
    count = round(most / step)
    return torch.randint(-count, count + 1, shape, generator=torch.Generator().manual_seed(seed)) * step


def _strided(draw: st.DrawFn, values: torch.Tensor) -> torch.Tensor:
    layout = draw(st.sampled_from(["contiguous", "permuted", "sliced"]))
    if layout == "permuted":
        return values.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "sliced":
        wide = torch.full((*values.shape[:-1], 2 * values.shape[-1]), float("nan"), dtype=values.dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    return values


@st.composite
def calls(draw: st.DrawFn, op: str) -> Call:
    """Tensors by name, at least one of which needs a gradient, and arguments."""
    dims, batch, seed = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2**31))
    sizes = st.tuples(*[st.integers(1, {1: 70, 2: 24, 3: 13}[dims])] * dims)
    size, dtype = draw(sizes), draw(st.sampled_from(DTYPES))
    arguments: dict[str, Any] = {"padding_mode": draw(st.sampled_from(PADDING_MODES))}
    field = _multiples((batch, dims, *size), 1 / 32, draw(st.sampled_from([0.5, 2.0, 4.0])), seed)
    if op == "gaussian_smooth":
        made = {"x": _multiples((batch, draw(st.integers(1, 3)), *size), 1 / 32, 4.0, seed)}
        arguments["sigma"] = draw(st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.2, 5.0]), min_size=dims, max_size=dims))
        arguments["truncate"] = draw(st.sampled_from([1.0, 3.0, 4.0]))
    elif op == "compose_ddf":
        made = {"outer": _multiples((batch, dims, *size), 1 / 32, 4.0, seed + 1), "inner": field}
    elif op == "integrate_velocity":
        made = {"velocity": field}
        arguments["steps"] = draw(st.integers(0, 1))
    else:
        channels, source = draw(st.integers(1, 4)), draw(sizes)
        made = {"image": _multiples((batch, channels, *source), 1 / 32, 4.0, seed + 1)}
        given_tensors = draw(st.sampled_from(["ddf", "affine", "both"]))
        if given_tensors != "affine":
            made["ddf"] = field
        if given_tensors != "ddf":
            identity = torch.eye(dims, dims + 1).expand(batch, -1, -1)
            made["affine"] = identity + _multiples((batch, dims, dims + 1), 1 / 4, 0.5, seed + 2)
        if given_tensors == "affine":
            arguments["size"] = size
        arguments["mode"] = draw(st.sampled_from(INTERPOLATIONS))
    needs = draw(st.lists(st.booleans(), min_size=len(made), max_size=len(made)).filter(any))
    tensors = {name: _strided(draw, tensor.to(dtype)) for name, tensor in made.items()}
    return {n: t.requires_grad_(flag) for (n, t), flag in zip(tensors.items(), needs, strict=True)}, arguments


def _values_and_gradients(op: str, tensors: dict[str, torch.Tensor], arguments: dict[str, Any]) -> list[torch.Tensor]:
    output = FUNCTIONS[op](**tensors, **arguments)
    incoming = _multiples(tuple(output.shape), 1 / 4, 2.0, 0).to(output)
    leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]
    return [output, *torch.autograd.grad(output, leaves, incoming)]


@pytest.mark.parametrize(("op", "backend"), FAST)
def test_random_calls(op: str, backend: str) -> None:
    @settings(
        max_examples=max(1, CASES // len(OPS)),
        deadline=None,
        database=None,
        derandomize="USREG_RANDOM_CASES" not in os.environ,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(calls(op))
    def agrees(call: Call) -> None:
        tensors, arguments = call
        oracle = {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in tensors.items()}
        with uk.use_backend(backend):
            actual = _values_and_gradients(op, tensors, arguments)
        with uk.use_backend("reference"):
            expected = _values_and_gradients(op, oracle, arguments)
        dtypes = [tensor.dtype for tensor in tensors.values() if tensor.requires_grad]
        output_dtype = torch.promote_types(next(iter(tensors.values())).dtype, torch.float32)
        assert actual[0].dtype == output_dtype
        assert_close(actual[0], expected[0], LOSS_TOLERANCE[output_dtype], floor=1e-6)
        for gradient, wanted, dtype in zip(actual[1:], expected[1:], dtypes, strict=True):
            assert gradient.dtype == dtype
            assert_close(gradient, wanted, GRADIENT_TOLERANCE[dtype], floor=1e-6)

    agrees()
