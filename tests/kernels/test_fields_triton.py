"""The losses of displacement fields in Triton: shapes that reach their edges, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernels.cases import FUNCTIONS
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels.ops.triton_backend import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1; on a GPU, see test_gpu.py")

MAPS = {"reduction": "none"}
CENTRAL = {"scheme": "central"}
SHAPES = {
    # sizes of 1, and of no more than the stencils reach
    "one voxel": ("gradient_smoothness", (1, 3, 1, 1, 1), {}),
    "depth 1": ("gradient_smoothness", (2, 3, 1, 5, 4), MAPS),
    "height 1": ("gradient_smoothness", (2, 3, 4, 1, 5), {"penalty": "l1"}),
    "width 1": ("gradient_smoothness", (2, 3, 4, 5, 1), {"spacing": (0.5, 2.0, 3.0)}),
    "one interior voxel": ("gradient_smoothness", (1, 3, 3, 3, 3), CENTRAL),
    "a row of interior voxels": ("gradient_smoothness", (1, 3, 3, 3, 9), {**CENTRAL, **MAPS, "normalize": True}),
    "bending, one interior voxel": ("bending_energy", (1, 3, 3, 3, 3), {}),
    "bending, a plane of interior voxels": ("bending_energy", (1, 3, 3, 6, 5), {**MAPS, "normalize": True}),
    "an error of one voxel": ("dvf_mse", (1, 3, 1, 1, 1), {}),
    "supervision, width 1": ("dvf_supervision", (2, 3, 4, 5, 1), {}),
    # several programs per component, the last one not full
    "programs": ("gradient_smoothness", (1, 3, 7, 9, 17), {}),
    "programs, central": ("gradient_smoothness", (1, 3, 7, 9, 17), {**CENTRAL, "penalty": "l1"}),
    "programs, 2-D": ("gradient_smoothness", (2, 2, 31, 37), MAPS),
    "programs, 1-D": ("gradient_smoothness", (1, 1, 1030), {}),
    "bending, programs": ("bending_energy", (1, 3, 5, 6, 9), {}),
    "bending, programs, 2-D": ("bending_energy", (1, 2, 15, 19), MAPS),
    "error, programs": ("dvf_mse", (1, 3, 9, 10, 31), {}),
    "error, programs, map": ("dvf_mse", (1, 3, 9, 10, 31), MAPS),
    "supervision, programs": ("dvf_supervision", (1, 3, 7, 9, 17), {"smooth_weight": 0.5}),
    "supervision, programs, 2-D": ("dvf_supervision", (1, 2, 31, 37), {"spacing": (0.7, 1.5)}),
}


@pytest.mark.parametrize(("op", "shape", "arguments"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_shape(op: str, shape: tuple[int, ...], arguments: dict[str, Any], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    count = 1 if op in ("gradient_smoothness", "bending_energy") else 2
    fields = [(4 * torch.rand(shape, generator=generator) - 2).to(dtype) for _ in range(count)]

    def loss_and_gradients(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        loss = FUNCTIONS[op](*leaves, **arguments)
        incoming = 512 * torch.rand(loss.shape, generator=torch.Generator().manual_seed(4)).to(loss)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, incoming)]

    with uk.use_backend("triton"):
        loss, *gradients = loss_and_gradients(fields)
    with uk.use_backend("reference"):
        expected, *wanted = loss_and_gradients([field.double() for field in fields])
    assert_close(loss, expected, LOSS_TOLERANCE[dtype])
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[dtype])
