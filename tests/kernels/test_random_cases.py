"""Random shapes, strides, windows, dtypes, masks and reductions: every fast backend against the float64 reference.

``USREG_RANDOM_CASES`` sets how many cases run in all (2,000 unless set).
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernels.cases import DTYPES
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels.functional import LOSSES
from usreg_kernels.ops.mind_ssc.reference import describe

CASES = int(os.environ.get("USREG_RANDOM_CASES", "2000"))
SHARE = {
    "lncc": 0.3,
    "gradient_smoothness": 0.15,
    "bending_energy": 0.1,
    "dvf_mse": 0.1,
    "dvf_supervision": 0.05,
    "folding": 0.1,
    "mind": 0.1,
    "mutual_information": 0.1,
}
WITH_MASK = ("lncc", "dvf_mse", "mind", "mutual_information")
"""The losses that take a mask, and any number of channels."""

FAST = [(op, backend) for op in LOSSES for backend in uk.available_backends(op) if backend == "cpu"]


@st.composite
def calls(draw: st.DrawFn, op: str) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Tensors and arguments of one call of an op; at least one tensor needs a gradient."""
    dims = draw(st.integers(2 if op == "mind" else 1, 3))
    smallest = 1
    arguments: dict[str, Any] = {}
    if op == "dvf_supervision":
        arguments |= _supervision(draw, dims)
    else:
        arguments["reduction"] = draw(st.sampled_from(["mean", "sum", "none"]))
    if op == "gradient_smoothness":
        arguments |= _smoothness(draw, dims)
        smallest = 3 if arguments["scheme"] == "central" else 1
    elif op == "bending_energy":
        arguments["normalize"] = draw(st.booleans())
        smallest = 3
    elif op == "lncc":
        arguments |= _lncc(draw, dims)
    elif op == "folding":
        arguments |= _folding(draw, dims)
    elif op == "mutual_information":
        arguments |= _mutual_information(draw)
    elif op == "mind":
        arguments |= {"radius": draw(st.integers(0, 4)), "dilation": draw(st.integers(1, 5))}
    largest = {1: 70, 2: 24, 3: 13}[dims]
    spatial = [draw(st.integers(smallest, largest)) for _ in range(dims)]
    batch = draw(st.integers(1, 2))
    channels = draw(st.integers(1, 3)) if op in WITH_MASK else dims
    shape = (batch, channels, *spatial)
    if op in WITH_MASK and draw(st.booleans()):
        arguments["mask"] = _mask(draw, shape)
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    count = 1 if op in ("gradient_smoothness", "bending_energy", "folding") else 2
    needs = draw(st.sampled_from([(True, False), (False, True), (True, True)] if count == 2 else [(True,)]))
    tensors = [_strided(draw, shape, dtype, seed + i) for i in range(count)]
    return [tensor.requires_grad_(flag) for tensor, flag in zip(tensors, needs, strict=True)], arguments


def _smoothness(draw: st.DrawFn, dims: int) -> dict[str, Any]:
    spacing = [draw(st.sampled_from([0.5, 1.0, 2.5])) for _ in range(dims)]
    return {
        "scheme": draw(st.sampled_from(["forward", "central"])),
        "penalty": draw(st.sampled_from(["l1", "l2"])),
        "spacing": draw(st.sampled_from([None, spacing])),
        "normalize": draw(st.booleans()),
    }


def _supervision(draw: st.DrawFn, dims: int) -> dict[str, Any]:
    weights = st.sampled_from([1.0, 2.5, 30.0])
    spacing = [draw(st.sampled_from([0.5, 1.0, 2.5])) for _ in range(dims)]
    return {
        "mse_weight": draw(weights),
        "smooth_weight": draw(weights),
        "spacing": draw(st.sampled_from([None, spacing])),
    }


def _folding(draw: st.DrawFn, dims: int) -> dict[str, Any]:
    """Margins that no determinant of the drawn fields equals: rounding would decide the gradient there."""
    spacing = [draw(st.sampled_from([0.5, 1.0, 2.5])) for _ in range(dims)]
    return {"margin": draw(st.sampled_from([0.03, 0.9, 1.3])), "spacing": draw(st.sampled_from([None, spacing]))}


def _mutual_information(draw: st.DrawFn) -> dict[str, Any]:
    kernel = draw(st.sampled_from(["b-spline", "gaussian"]))
    return {
        "kernel": kernel,
        "num_bins": draw(st.sampled_from([6, 7, 23, 32, 33, 64] + ([2, 3] if kernel == "gaussian" else []))),
        "sigma_ratio": draw(st.sampled_from([0.1, 0.5, 0.8, 3.0])),
        "normalized": draw(st.booleans()),
        "smooth_nr": draw(st.sampled_from([0.0, 1e-7])),
        "smooth_dr": draw(st.sampled_from([1e-7, 1e-4])),
    }


def _lncc(draw: st.DrawFn, dims: int) -> dict[str, Any]:
    sizes = st.sampled_from([1, 3, 5, 7, 9, 11, 15, 17])
    one = draw(sizes)
    return {
        "kernel_size": draw(st.sampled_from([one, [one] + [draw(sizes) for _ in range(dims - 1)]])),
        "kernel_type": draw(st.sampled_from(["rectangular", "triangular", "gaussian"])),
        "smooth_nr": draw(st.sampled_from([0.0, 1e-2])),
        "smooth_dr": draw(st.sampled_from([1e-5, 1e-2])),
    }


def _mask(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    mask = torch.rand(shape[0], draw(st.sampled_from([1, shape[1]])), *shape[2:], generator=generator)
    return draw(st.sampled_from([mask, mask > 0.5, torch.zeros_like(mask)]))


def _strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Noise in steps of 1/256, which every dtype holds exactly; contiguous, permuted, or every other voxel."""
    generator = torch.Generator().manual_seed(seed)
    layout = draw(st.sampled_from(["contiguous", "permuted", "sliced"]))
    values = torch.randint(0, 257, shape, generator=generator).to(dtype) / 256
    if layout == "permuted":
        return values.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "sliced":
        wide = torch.full((*shape[:-1], 2 * shape[-1]), float("nan"), dtype=dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    return values


def _loss_and_gradients(op: str, tensors: list[torch.Tensor], arguments: dict[str, Any]) -> list[torch.Tensor]:
    loss = LOSSES[op](*tensors, **arguments)
    generator = torch.Generator().manual_seed(0)
    incoming = (torch.randint(1, 9, loss.shape, generator=generator) / 4).to(loss.dtype)
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    return [loss, *torch.autograd.grad((loss * incoming).sum(), leaves)]


def _rounding(gradient: torch.Tensor, wanted: torch.Tensor, arguments: dict[str, Any]) -> float:
    """The norm of what rounding leaves where the terms of a gradient cancel, as on a volume of one voxel.

    The terms of one voxel are of the order of the incoming gradient, at most 2, over the number of voxels for a mean.
    LNCC divides them by a deviation, down to the root of ``smooth_dr``: that counts where all of the gradient cancels.
    """
    epsilon = torch.finfo(torch.promote_types(gradient.dtype, torch.float32)).eps
    voxels = gradient.numel()
    scale = voxels**0.5 / (voxels if arguments.get("reduction", "mean") == "mean" else 1)
    if wanted.norm().item() < 1e-8 * scale:
        epsilon /= arguments.get("smooth_dr", 1.0) ** 0.5
    return 64 * epsilon * scale


def _rounding_of_places(gradient: torch.Tensor, pred: torch.Tensor, arguments: dict[str, Any]) -> float:
    """The same for mutual information, which every backend computes in float64.

    Its terms are larger: a histogram changes by bins per unit of intensity, a narrow gaussian changes faster, and the
    logarithms go down to that of ``smooth_dr``. Wide gaussians tell little apart: such gradients are so small that
    float16 holds them to a few bits.
    """
    limits = torch.finfo(gradient.dtype)
    smallest = limits.smallest_normal * limits.eps * gradient.numel() ** 0.5
    if arguments["kernel"] == "gaussian":
        steepness = arguments["num_bins"] / min(1.0, arguments["sigma_ratio"]) ** 2
    else:
        steepness = arguments["num_bins"] / max(1 / 256, (pred.max() - pred.min()).item())
    steepness *= -math.log(arguments["smooth_dr"])
    if arguments["normalized"] and _fewest_voxels(gradient, arguments) <= 2:  # an entropy that is next to nothing
        steepness /= arguments["smooth_dr"]
    return smallest + _rounding(gradient.double(), gradient, {"reduction": arguments["reduction"]}) * steepness


def _has_ties(image: torch.Tensor, arguments: dict[str, Any], rounding: float) -> bool:
    """Whether two channels of a descriptor are lowest but for rounding: each has a gradient of its own.

    They are in an image with an axis of one voxel, and by chance in one of few values; in float32, by chance in any.
    """
    found = describe(image.detach().double(), arguments["radius"], arguments["dilation"])
    gaps = found.excess.topk(2, dim=2, largest=False).values[:, :, 1]
    return bool((gaps <= rounding * (1 + found.excess.amax(dim=2))).any())


def _rounding_of_loss(loss: torch.Tensor, op: str, image: torch.Tensor, arguments: dict[str, Any]) -> float:
    """The same for a loss whose terms cancel: mutual information of images that have nothing in common.

    The C++ kernels leave out of a gaussian what is below 1e-13 of its largest weight. Normalized, the entropies are
    divided by the joint one. Of a voxel or two that can be next to nothing, and ``smooth_dr`` divides their rounding.
    """
    if op != "mutual_information":
        return 0.0
    floor = 1e-12
    if arguments["normalized"] and _fewest_voxels(image, arguments) <= 2:
        floor += 8 * torch.finfo(torch.float64).eps / arguments["smooth_dr"]
    return floor * loss.numel() ** 0.5


def _fewest_voxels(image: torch.Tensor, arguments: dict[str, Any]) -> int:
    """How many voxels, times channels, count in the item of a batch where they are fewest."""
    mask = torch.as_tensor(arguments.get("mask", True)).expand_as(image)
    return int((mask != 0).flatten(1).sum(dim=1).min())


def _loss_tolerance(dtype: torch.dtype, arguments: dict[str, Any]) -> float:
    """LNCC divides by variances down to ``smooth_dr`` of sums of the order of 1: the reference rounds them too."""
    return max(LOSS_TOLERANCE[dtype], 4 * torch.finfo(torch.float64).eps / arguments.get("smooth_dr", 1.0))


@pytest.mark.parametrize(("op", "backend"), FAST)
def test_random_calls(op: str, backend: str) -> None:
    @settings(
        max_examples=max(1, round(CASES * SHARE[op])),
        deadline=None,
        database=None,
        derandomize="USREG_RANDOM_CASES" not in os.environ,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(calls(op))
    def agrees(call: tuple[list[torch.Tensor], dict[str, Any]]) -> None:
        tensors, arguments = call
        if op == "mind":
            exact = tensors[0].dtype == torch.float64
            assume(not any(_has_ties(image, arguments, 1e-12 if exact else 1e-7) for image in tensors))
        oracle = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]
        with uk.use_backend(backend):
            actual = _loss_and_gradients(op, tensors, arguments)
        with uk.use_backend("reference"):
            expected = _loss_and_gradients(op, oracle, arguments)
        dtype = tensors[0].dtype
        floor = _rounding_of_loss(expected[0], op, tensors[0], arguments)
        assert_close(actual[0], expected[0], _loss_tolerance(dtype, arguments), floor)
        for gradient, wanted in zip(actual[1:], expected[1:], strict=True):
            assert gradient.dtype == dtype
            if op == "mutual_information":
                floor = _rounding_of_places(gradient, tensors[0].detach(), arguments)
            else:
                floor = _rounding(gradient, wanted, arguments)
            assert_close(gradient, wanted, GRADIENT_TOLERANCE[dtype], floor)

    agrees()
