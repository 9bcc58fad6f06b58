"""The GPU backends on a GPU: the cases of the other tests on the device, and what only a device can show.

Tests marked ``large`` take volumes of more than 2^31 elements, and most of a GPU's memory. Run each in a process of its
own, or the next one may find too little of it free::

    for test in $(pytest -m large tests/kernels/test_gpu.py --collect-only -q | grep ::); do pytest "$test"; done

``USREG_TEST_GPU=cpu`` lets the CPU and Triton's interpreter stand in for a GPU, on small volumes: this tests the tests.
What needs a driver is skipped then, and says so (test_gpu_stand_in.py).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import prod

import pytest
import torch
from kernels.cases import CASES, DTYPES, FUNCTIONS, ONE_CASE_PER_OP, Case, interpreted, takes
from kernels.compare import assert_close
from kernels.lncc_features import FEATURES, Feature

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE, MAP_TOLERANCE
from usreg_kernels.ops.triton_backend import INTERPRETED
from usreg_kernels.optim import SCALES, FieldAdam, Scale

STAND_IN = os.environ.get("USREG_TEST_GPU") == "cpu" and INTERPRETED

if not (STAND_IN or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cpu" if STAND_IN else "cuda")
ON_GPU = [
    (op, name)
    for op in FUNCTIONS
    for name in (("triton",) if STAND_IN else ("triton", "cuda"))
    if name in uk.available_backends(op)
]


def _with_backends(cases: list[Case]) -> list[tuple[Case, str]]:
    return [(interpreted(case) if STAND_IN else case, name) for case in cases for op, name in ON_GPU if op == case.op]


EVERY_OP = pytest.mark.parametrize(("case", "backend"), _with_backends(ONE_CASE_PER_OP), ids=str)
LNCC_BACKENDS = pytest.mark.parametrize("backend", [name for op, name in ON_GPU if op == "lncc"])
NEEDS_A_DRIVER = pytest.mark.skipif(STAND_IN, reason="needs a GPU's driver, for which nothing stands in")


def _step(case: Case, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The loss and its gradients, for an incoming gradient that is not 1."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    loss = case.run(*leaves)
    incoming = torch.rand(loss.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(loss)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, incoming)]


def _on_device(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    return [tensor.detach().to(DEVICE) for tensor in case.tensors(dtype, seed)]


# ---- the cases of the other tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "backend"), _with_backends(CASES), ids=str)
def test_agrees_with_the_cpu(case: Case, backend: str, dtype: torch.dtype) -> None:
    """In float64 on the CPU: with the C++ kernels where they are built."""
    if not takes(backend, dtype):
        with uk.use_backend(backend), pytest.raises(uk.BackendError, match="float32"):
            case.scalar(*_on_device(case, dtype))
        return
    tensors = [tensor.detach() for tensor in case.tensors(dtype)]
    with uk.use_backend(backend):
        loss, *gradients = _step(case, [tensor.to(DEVICE) for tensor in tensors])
    expected, *wanted = _step(case, [tensor.double() for tensor in tensors])
    narrow = case.op == "lncc" and case.dims == 1 and "kernel_size" not in case.arguments  # windows of three voxels
    losses, slopes = (1e-4, 1e-3) if narrow else (MAP_TOLERANCE[dtype] if loss.ndim else 0.0, 0.0)
    assert_close(loss.cpu(), expected, max(LOSS_TOLERANCE[dtype], losses))
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert gradient.dtype == dtype
        assert_close(gradient.cpu(), oracle, max(GRADIENT_TOLERANCE[dtype], slopes))


@LNCC_BACKENDS
@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
def test_lncc_feature(feature: Feature, backend: str) -> None:
    tensors = feature.tensors()
    with uk.use_backend(backend), feature.pinned() if backend == "triton" else nullcontext():
        loss, *gradients = feature.loss_and_gradients([tensor.to(DEVICE) for tensor in tensors])
    expected, *wanted = feature.loss_and_gradients([tensor.double() for tensor in tensors])
    assert_close(loss.cpu(), expected, (MAP_TOLERANCE if loss.ndim else LOSS_TOLERANCE)[feature.dtype])
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert_close(gradient.cpu(), oracle, GRADIENT_TOLERANCE[feature.dtype], floor=1e-6)


@EVERY_OP
def test_same_bits_every_time(case: Case, backend: str) -> None:
    shape = (1, 3, 3, 4, 5) if STAND_IN else (2, 3, 40, 50, 60)
    large = [torch.rand(shape, device=DEVICE) for _ in case.tensors()]
    with uk.use_backend(backend):
        first, *rest = (_step(case, large) for _ in range(2 if STAND_IN else 5))
    for other in rest:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


STEPS = [name for name in ("triton", *(() if STAND_IN else ("cuda",))) if name in uk.available_backends("field_adam")]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("backend", STEPS)
def test_steps_of_a_field_agree_with_the_cpu(backend: str, scale: Scale) -> None:
    start = torch.rand((2, 2, 5, 13) if STAND_IN else (2, 3, 40, 50, 60), dtype=torch.float64)
    fields = [start.to(DEVICE, torch.float32).requires_grad_(), start.clone().requires_grad_()]
    optimizers = [FieldAdam([field], lr=0.1, scale=scale) for field in fields]
    for number in range(3):
        gradient = torch.rand(start.shape, generator=torch.Generator().manual_seed(number)) - 0.4
        fields[0].grad, fields[1].grad = gradient.to(DEVICE), gradient.double()
        with uk.use_backend(backend):
            optimizers[0].step()
        optimizers[1].step()
    moved, expected = fields[0].detach().cpu() - start, fields[1].detach() - start
    assert_close(moved, expected, GRADIENT_TOLERANCE[torch.float32])


# ---- devices, streams and graphs -------------------------------------------------------------------------------------


@NEEDS_A_DRIVER
@pytest.mark.parametrize("op", FUNCTIONS)
def test_the_automatic_choice_is_the_first_fused_kernel(op: str) -> None:
    tensors = _on_device(Case(op))
    assert uk.explain(op, *tensors).chosen == next((name for other, name in ON_GPU if other == op), "reference")


@contextmanager
def _nothing_may_wait() -> Iterator[None]:
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@NEEDS_A_DRIVER
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")  # torch, at its first use
@EVERY_OP
def test_nothing_waits_for_the_device(case: Case, backend: str) -> None:
    tensors = _on_device(case)
    incoming = torch.ones((), device=DEVICE)

    def step() -> None:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        torch.autograd.grad(case.scalar(*leaves), leaves, incoming)

    with uk.use_backend(backend):
        step()  # compiles
        with _nothing_may_wait():
            step()


@NEEDS_A_DRIVER
@EVERY_OP
def test_graph_capture(case: Case, backend: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in _on_device(case)]
    with uk.use_backend(backend):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.autograd.grad(case.scalar(*leaves), leaves)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = case.scalar(*leaves)
            gradients = torch.autograd.grad(loss, leaves)
        fresh = _on_device(case, seed=7)
        with torch.no_grad():
            for leaf, values in zip(leaves, fresh, strict=True):
                leaf.copy_(values)
        graph.replay()
        again = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        expected = case.scalar(*again)
        assert torch.equal(loss, expected)
        for gradient, wanted in zip(gradients, torch.autograd.grad(expected, again), strict=True):
            assert torch.equal(gradient, wanted)


@NEEDS_A_DRIVER
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("backend", STEPS)
def test_captured_steps_of_a_field(backend: str, scale: Scale) -> None:
    """As those that are not captured; these wait for nothing."""
    fields = [torch.zeros(2, 3, 20, 30, 40, device=DEVICE, requires_grad=True) for _ in range(2)]
    captured, plain = (FieldAdam([field], lr=0.1, scale=scale) for field in fields)
    gradient = torch.rand(fields[0].shape, device=DEVICE) - 0.5
    for field in fields:
        field.grad = gradient.clone()
    with uk.use_backend(backend):
        captured.step()  # makes the state
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.step()
        plain.step()
        for number in range(3):
            for field in fields:
                field.grad.copy_(gradient.roll(number))
            graph.replay()
            with _nothing_may_wait():
                plain.step()
    assert torch.equal(*fields)
    assert captured.state[fields[0]]["step"] == plain.state[fields[1]]["step"] == 4


@NEEDS_A_DRIVER
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@LNCC_BACKENDS
def test_captured_steps_of_a_registration(backend: str) -> None:
    """Warp, losses, gradient, smoothing and step in one graph, with the bits of the same without one."""
    moving, fixed = torch.rand(2, 1, 1, 24, 30, 40, device=DEVICE)
    fields = [torch.zeros(1, 3, 24, 30, 40, device=DEVICE, requires_grad=True) for _ in range(2)]
    steps = [FieldAdam([field], lr=0.1, scale="longest") for field in fields]

    def iterate(number: int) -> None:
        field = fields[number]
        loss = uk.lncc_loss(uk.warp(moving, field), fixed, kernel_size=9) + 0.1 * uk.gradient_smoothness_loss(field)
        (gradient,) = torch.autograd.grad(loss, field)
        field.grad = uk.gaussian_smooth(gradient, 1.0)
        steps[number].step()

    with uk.use_backend(backend):
        for number in (0, 1):
            iterate(number)  # makes the state, and compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            iterate(0)
        for _ in range(3):
            graph.replay()
            with _nothing_may_wait():
                iterate(1)
    assert fields[0].abs().max() > 0.1
    assert torch.equal(*fields)


@NEEDS_A_DRIVER
@EVERY_OP
def test_two_streams(case: Case, backend: str) -> None:
    inputs = [[torch.rand(1, 3, 64, 64, 64, device=DEVICE) for _ in case.tensors()] for _ in range(2)]
    with uk.use_backend(backend):
        expected = [_step(case, tensors) for tensors in inputs]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in inputs]
        results = []
        for stream, tensors in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(_step(case, tensors))
        torch.cuda.synchronize()
    for result, wanted in zip(results, expected, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(result, wanted, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@EVERY_OP
def test_another_device_than_the_current_one(case: Case, backend: str) -> None:
    tensors = _on_device(case)
    with uk.use_backend(backend):
        expected = _step(case, tensors)
        found = _step(case, [tensor.to("cuda:1") for tensor in tensors])
    for result, wanted in zip(found, expected, strict=True):
        assert result.device == torch.device("cuda:1")
        assert torch.equal(result.cpu(), wanted.cpu())


@EVERY_OP
def test_compile_fullgraph(case: Case, backend: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in _on_device(case)]
    torch.compiler.reset()

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return case.scalar(*(2 * tensor for tensor in tensors)) * 3

    with uk.use_backend(backend):
        compiled = torch.compile(function, fullgraph=True)
        for one, two in zip(
            torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(function(*leaves), leaves), strict=True
        ):
            assert_close(one, two, 1e-6)


# ---- mixed precision -------------------------------------------------------------------------------------------------


@LNCC_BACKENDS
def test_autocast_with_a_grad_scaler(backend: str) -> None:
    """A gradient of about 1 / voxels vanishes in float16 unless it is scaled before it is rounded."""
    torch.manual_seed(0)
    size = 8 if STAND_IN else 48
    moving, fixed = torch.rand(2, 1, 1, size, size, size, device=DEVICE)
    weights = {}
    for amp in (True, False):
        torch.manual_seed(1)
        network = torch.nn.Conv3d(1, 1, 3, padding=1).to(DEVICE)
        scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**12, enabled=amp)  # the weights' gradient fits, too
        with torch.autocast(DEVICE.type, dtype=torch.float16, enabled=amp), uk.use_backend(backend):
            warped = network(moving)
            assert warped.dtype == (torch.float16 if amp else torch.float32)
            loss = uk.lncc_loss(warped, fixed.to(warped.dtype), kernel_size=7, smooth_dr=1e-2)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        scaler.unscale_(optimizer)
        weights[amp] = network.weight.grad
    assert weights[False].norm() > 0
    assert_close(weights[True], weights[False], 0.02)


# ---- more than 2^31 elements -----------------------------------------------------------------------------------------


MAPS = 5  # float32 per voxel, which LNCC saves where both images need a gradient
SPARE = 2**30  # bytes: partial sums, corners, and what the allocator rounds up


def _bytes_needed(shape: tuple[int, ...], images: int, maps: int) -> int:
    """What ``_compare_corners`` allocates: float16 images, what autograd keeps of them, and one float16 gradient."""
    return prod(shape) * (2 * images + 4 * maps + 2) + SPARE


def _skip_if_too_large(needed: int) -> None:
    if STAND_IN:
        return
    gc.collect()
    torch.cuda.empty_cache()  # what torch keeps of earlier tests counts as used
    free, total = torch.cuda.mem_get_info()
    if free < needed:
        gib = [round(size / 2**30, 1) for size in (needed, free, total)]
        pytest.skip("needs {} GiB of free GPU memory, and {} of {} GiB are free".format(*gib))


def _in_two_corners(shape: tuple[int, ...], block: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A float16 volume of zeros with noise in its first and last corner; and that noise, one block a batch."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, *block, generator=generator).half().to(DEVICE)
    volume = torch.zeros(shape, dtype=torch.float16, device=DEVICE)
    volume[_corner(block, first=True)] = noise[:1]
    volume[_corner(block, first=False)] = noise[1:]
    return volume, noise


def _corner(block: tuple[int, ...], first: bool) -> tuple[slice, ...]:
    sizes = block[1:]
    return (slice(None), slice(None), *[slice(0, size) if first else slice(-size, None) for size in sizes])


def _compare_corners(
    loss: Callable[..., torch.Tensor], shape: tuple[int, ...], block: tuple[int, ...], images: int, maps: int = 0
) -> None:
    """The summed loss of zeros with noise in two far corners, and its gradients, are those of the two corners.

    Zeros add nothing to a sum; each corner gets as many zeros around it as its windows reach.
    """
    _skip_if_too_large(_bytes_needed(shape, images, maps))
    halo = 4
    volumes, corners = zip(*(_in_two_corners(shape, block, seed) for seed in range(images)), strict=True)
    leaves = [volume.requires_grad_() for volume in volumes]
    found = loss(*leaves)
    gradients = torch.autograd.grad(found, leaves[:1])
    total = 0.0
    for i, first in enumerate((True, False)):
        pads = [(0, halo) if first else (halo, 0) for _ in block[1:]]
        flat = [pad for pair in reversed(pads) for pad in pair]
        small = [torch.nn.functional.pad(noise[i : i + 1], flat).requires_grad_() for noise in corners]
        part = loss(*small)
        (wanted,) = torch.autograd.grad(part, small[:1])
        inner = _corner(block, first)
        assert_close(gradients[0][inner], wanted[inner], 1e-3)
        total += part.item()
    assert abs(found.item() - total) <= 1e-5 * abs(total)


# The stand-in's volumes just keep the windows of one corner out of the other.
LARGE = (12, 7, 8) if STAND_IN else (2050, 1024, 1024)  # more than 2^31 voxels
LARGE_PLANE = (12, 7) if STAND_IN else (24000, 24000)  # whose maps have more than 2^31 elements
CORNER = (2, 3, 4) if STAND_IN else (20, 24, 40)
FIELD_LOSSES = ("gradient_smoothness", "bending_energy", "dvf_mse", "folding")  # dvf_supervision is a mean: no corners


def _lncc(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return uk.lncc_loss(pred, target, kernel_size=9, reduction="sum", smooth_dr=1e-2)


@pytest.mark.slow
@pytest.mark.large
@LNCC_BACKENDS
def test_lncc_of_more_than_2_31_voxels(backend: str) -> None:
    with uk.use_backend(backend):
        _compare_corners(_lncc, (1, 1, *LARGE), (1, *CORNER), images=2, maps=MAPS)


@pytest.mark.slow
@pytest.mark.large
@LNCC_BACKENDS
def test_lncc_of_a_plane_whose_maps_pass_2_31_elements(backend: str) -> None:
    with uk.use_backend(backend):
        _compare_corners(_lncc, (1, 1, *LARGE_PLANE), (1, *CORNER[:2]), images=2, maps=MAPS)


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.parametrize(("op", "backend"), [pair for pair in ON_GPU if pair[0] in FIELD_LOSSES])
def test_a_field_of_more_than_2_31_voxels(op: str, backend: str) -> None:
    def loss(*fields: torch.Tensor) -> torch.Tensor:
        return FUNCTIONS[op](*fields, reduction="sum")

    with uk.use_backend(backend):
        slopes = 1 if op == "folding" else 0  # a map between its two passes
        _compare_corners(loss, (1, 3, *LARGE), (3, *CORNER), images=len(Case(op).tensors()), maps=slopes)
