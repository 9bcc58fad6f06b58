"""The CUDA kernels and their launchers, executed without a GPU: what every backend owes, and every branch of theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernels import cuda_emulation
from kernels import test_backends as backends
from kernels import test_field_adam as field_adam
from kernels import test_gaussian_smooth as smoothing
from kernels import test_jacobian as jacobian
from kernels import test_mind as mind
from kernels import test_mutual_information as information
from kernels import test_random_cases as random_cases
from kernels import test_random_warps as random_warps
from kernels import test_warp as warps
from kernels.cases import CASES, DTYPES, ONE_CASE_PER_OP, Case
from kernels.compare import assert_close
from kernels.cuda_on_cpu import build
from kernels.field_steps import FLOATS
from kernels.lncc_features import FEATURES, Feature, assert_recomputing_gives_the_same_bits, kernel
from kernels.warped_shapes import WARPED_SHAPES, assert_warps_like_the_reference

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE, MAP_TOLERANCE
from usreg_kernels import dispatch
from usreg_kernels.fields import INTERPOLATIONS, PADDING_MODES
from usreg_kernels.functional import LOSSES, PARZEN_KERNELS
from usreg_kernels.optim import SCALES, Scale

pytestmark = pytest.mark.skipif(build.COMPILER is None, reason="needs a C++ compiler, e.g. g++")

WRITTEN = [case for case in CASES if "cuda" in dispatch._backends[case.op]]
ONE_WRITTEN = [case for case in ONE_CASE_PER_OP if "cuda" in dispatch._backends[case.op]]


@pytest.fixture(autouse=True)
def cuda_on_cpu() -> Iterator[None]:
    """With the ``cuda`` backend on CPU tensors, whose outputs are NaN until they are written."""
    torch.use_deterministic_algorithms(True)
    try:
        with cuda_emulation.emulated():
            yield
    finally:
        torch.use_deterministic_algorithms(False)


# ---- what every backend owes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", WRITTEN, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_float64_reference(case: Case, dtype: torch.dtype) -> None:
    backends.test_backend_agrees_with_the_float64_reference(case, "cuda", dtype)


@pytest.mark.parametrize("case", WRITTEN, ids=str)
def test_gradcheck(case: Case) -> None:
    backends.test_gradcheck(case, "cuda")


@pytest.mark.parametrize("case", ONE_WRITTEN, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "opcheck",  # of an operator that all backends share: every case of it is another's test
        "gradgradcheck",  # and so is every case of a double backward pass, which is made of the reference
        "gradient_to_one_input_alone",
        "no_grad_and_constant_inputs",
        "backward_twice_through_one_graph",
        "compile_fullgraph_with_backward",
        "autocast_changes_nothing",
        "any_strides",
        "same_bits_for_any_number_of_threads",
        "empty_batch",
        "integers_are_refused",
    ],
)
def test_every_op(case: Case, name: str) -> None:
    getattr(backends, f"test_{name}")(case, "cuda")


@pytest.mark.parametrize("case", ONE_WRITTEN, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_gradients_survive_a_grad_scaler(case: Case, dtype: torch.dtype) -> None:
    backends.test_half_gradients_survive_a_grad_scaler(case, "cuda", dtype)


@pytest.mark.parametrize("case", ONE_WRITTEN, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_never_hidden(case: Case, bad: float) -> None:
    backends.test_nan_and_inf_are_never_hidden(case, "cuda", bad)


# ---- LNCC: every branch of the two ways to compute it ----------------------------------------------------------------

LNCC_FEATURES = {
    **{name: replace(feature, tile=None, chunk=None) for name, feature in FEATURES.items()},
    **{f"box {size}, a map": Feature((1, 1, 3, 6, 9), kernel(size, reduction="none")) for size in range(3, 17, 2)},
    **{f"box {size}, both": Feature((1, 1, 4, 5, 33), kernel(size), mask=1) for size in range(3, 17, 2)},
    **{f"box {size}, several tiles": Feature((1, 1, 2, 6, 70), kernel(size), needs="p") for size in range(3, 17, 2)},
    **{f"gaussian {size}, a map": Feature((1, 1, 3, 6, 40), kernel(size, "gaussian", reduction="none"), mask=1)
       for size in range(3, 17, 2)},
    "window 17": Feature((1, 1, 4, 5, 9), kernel(17)),
    "window 21, gaussian": Feature((1, 2, 4, 5, 9), kernel(21, "gaussian"), mask=1),
    "window 301": Feature((1, 1, 310), kernel(301, "triangular"), needs="t"),
    "float64": Feature((2, 1, 9, 8, 7), kernel(7), dtype=torch.float64, mask=1),
    "float64 map": Feature((1, 2, 9, 8, 7), kernel((3, 5, 7), "gaussian", reduction="none"), dtype=torch.float64),
    "float16, general": Feature((1, 2, 9, 5, 7), kernel((3, 1, 5)), dtype=torch.float16, incoming=1024.0),
    "planes in parts": Feature((1, 1, 30, 7, 9), kernel((5, 3, 1))),
    "2-D in chunks": Feature((1, 1, 40, 9), kernel(3)),
    "another row window": Feature((1, 1, 6, 7, 8), kernel((5, 9, 5)), needs="t"),
}  # fmt: skip


@pytest.mark.parametrize("feature", LNCC_FEATURES.values(), ids=LNCC_FEATURES)
def test_lncc_feature(feature: Feature) -> None:
    tensors = feature.tensors()
    with uk.use_backend("cuda"):
        loss, *gradients = feature.loss_and_gradients(tensors)
    with uk.use_backend("reference"):
        expected, *wanted = feature.loss_and_gradients([tensor.double() for tensor in tensors])
    tolerance = (MAP_TOLERANCE if loss.ndim else LOSS_TOLERANCE)[feature.dtype]
    assert_close(loss, expected, tolerance)
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert gradient.dtype == feature.dtype
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[feature.dtype], floor=1e-6)


@pytest.mark.parametrize("multiprocessors", [1, 2, 5, 100])
def test_lncc_in_chunks_of_planes(multiprocessors: int) -> None:
    """More multiprocessors, more chunks: the march starts again in each."""
    for feature in (Feature((1, 1, 13, 5, 9), kernel(5), mask=1), Feature((1, 2, 11, 4, 6), kernel(7), needs="p")):
        with cuda_emulation.emulated(multiprocessors):
            test_lncc_feature(feature)


def test_lncc_recomputing_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_recomputing_gives_the_same_bits("cuda", monkeypatch)


def test_rows_that_begin_at_odd_addresses() -> None:
    values = torch.rand(2 * 4 * 6 * 8 + 1)
    images = [values[1:].view(2, 1, 4, 6, 8), values[:-1].view(2, 1, 4, 6, 8)]
    with uk.use_backend("cuda"):
        loss = uk.lncc_loss(*images, kernel_size=3)
    assert_close(loss, uk.lncc_loss(*(image.double() for image in images), kernel_size=3), 1e-6)


# ---- losses of displacement fields: columns that march through chunks of planes --------------------------------------

FIELD_CALLS = {
    **{f"{scheme}, {penalty}": (uk.gradient_smoothness_loss, {"scheme": scheme, "penalty": penalty})
       for scheme in ("forward", "central") for penalty in ("l1", "l2")},
    "bending": (uk.bending_energy_loss, {}),
    "folding": (uk.folding_loss, {"margin": 0.9}),
}  # fmt: skip
FIELD_SHAPES = [(1, 1, 300), (1, 2, 41, 5), (1, 2, 3, 140), (1, 3, 35, 6, 7), (2, 3, 4, 17, 9), (1, 3, 3, 3, 3)]


def _field_loss_and_gradient(
    loss: Callable[..., torch.Tensor], field: torch.Tensor, **arguments: object
) -> tuple[torch.Tensor, torch.Tensor]:
    field = field.clone().requires_grad_()
    value = loss(field, **arguments)
    incoming = torch.arange(1, value.numel() + 1).view(value.shape).to(value.dtype) / value.numel()
    return value.detach(), torch.autograd.grad((value * incoming).sum(), field)[0]


@pytest.mark.parametrize("shape", FIELD_SHAPES, ids=str)
@pytest.mark.parametrize(("loss", "arguments"), FIELD_CALLS.values(), ids=FIELD_CALLS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_field_in_chunks(
    loss: Callable[..., torch.Tensor], arguments: dict[str, str], shape: tuple[int, ...], reduction: str
) -> None:
    field = torch.rand(shape, dtype=torch.float64)
    with uk.use_backend("cuda"):
        value, gradient = _field_loss_and_gradient(loss, field, reduction=reduction, **arguments)
    with uk.use_backend("reference"):
        expected, wanted = _field_loss_and_gradient(loss, field, reduction=reduction, **arguments)
    assert_close(value, expected, LOSS_TOLERANCE[torch.float64])
    assert_close(gradient, wanted, GRADIENT_TOLERANCE[torch.float64])


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 2, 9, 7), (1, 3, 4, 5, 4)], ids=str)
@pytest.mark.parametrize("call", ["forward, l2", "central, l2", "bending", "folding"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_field_voxels_that_are_not_finite_spread_as_far_as_differences(
    call: str, shape: tuple[int, ...], bad: float
) -> None:
    """Of squares: the sign of NaN is finite in the reference."""
    loss, arguments = FIELD_CALLS[call]
    for place in range(torch.Size(shape[2:]).numel()):
        field = torch.rand(shape)
        field[0, 0].view(-1)[place] = bad
        with uk.use_backend("cuda"):
            found = _field_loss_and_gradient(loss, field, reduction="none", **arguments)
            of_sum = _field_loss_and_gradient(loss, field, reduction="sum", **arguments)[1]
        with uk.use_backend("reference"):
            expected = _field_loss_and_gradient(loss, field, reduction="none", **arguments)
        for one, other in zip((*found, of_sum), (*expected, expected[1]), strict=True):
            assert torch.equal(one.isfinite(), other.isfinite())


# ---- the step of a field ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "the_function_returns_the_update_that_the_optimizer_adds",
        "every_backend_agrees_with_the_float64_reference",
        "a_gradient_of_zero_moves_nothing",
    ],
)
def test_a_step(name: str, dtype: torch.dtype, scale: Scale) -> None:
    getattr(field_adam, f"test_{name}")("cuda", dtype, scale)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_plain_and_scaled_steps(dtype: torch.dtype) -> None:
    field_adam.test_twenty_plain_steps_are_those_of_torch("cuda", dtype, {})
    field_adam.test_the_longest_vector_of_each_sample_is_lr("cuda", dtype, 1.0)


@pytest.mark.parametrize("scale", SCALES)
def test_edges_of_a_step(scale: Scale) -> None:
    field_adam.test_what_is_not_finite_stays_visible("cuda", torch.float64, scale, float("nan"))
    field_adam.test_what_is_not_finite_stays_visible("cuda", torch.float32, scale, -float("inf"))
    field_adam.test_a_square_that_overflows_is_not_silent_where_the_scale_depends_on_it("cuda")
    for shape in ((0, 3, 4, 5, 6), (2, 3, 4, 0, 6)):
        field_adam.test_a_field_without_voxels("cuda", shape, scale)
    field_adam.test_any_strides("cuda", scale)
    field_adam.test_opcheck("cuda", scale, replace=False)


@pytest.mark.parametrize("spacing", [None, jacobian.SPACING], ids=["voxels", "mm"])
@pytest.mark.parametrize("spatial", [*jacobian.SHAPES, *jacobian.FLAT, (70, 5, 30)], ids=str)
def test_jacobian_of_every_shape(spatial: tuple[int, ...], spacing: tuple[float, ...] | None) -> None:
    with uk.use_backend("cuda"):
        jacobian.test_agrees_with_plain_torch(spatial, spacing, torch.float64)
        jacobian.test_the_identity_has_determinant_1(spatial)


@pytest.mark.parametrize("spatial", [(0,), (0, 4), (4, 0, 5), (4, 5, 0)], ids=str)
def test_jacobian_without_voxels(spatial: tuple[int, ...]) -> None:
    with uk.use_backend("cuda"):
        jacobian.test_fields_without_voxels(spatial)
        jacobian.test_an_axis_of_one_voxel_hides_nan_along_itself()


# ---- smoothing: several blocks, ends nearer than the filter reaches --------------------------------------------------


@pytest.mark.parametrize("shape", smoothing.SHAPES, ids=str)
@pytest.mark.parametrize("sigma", [0.7, 2.0])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_smoothing(padding_mode: str, sigma: float, shape: tuple[int, ...]) -> None:
    smoothing.test_the_gradient_is_the_adjoint("cuda", padding_mode, sigma, shape)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_smoothing_with_special_sigmas_and_values(padding_mode: str) -> None:
    smoothing.test_sigma_per_axis("cuda", padding_mode)
    smoothing.test_nan_and_infinity_spread_as_far_as_the_filter("cuda", padding_mode)


# ---- MIND: slabs of planes, and all that the definition says ---------------------------------------------------------


@pytest.mark.parametrize(("radius", "dilation"), [(2, 2), (0, 1), (1, 3)])
@pytest.mark.parametrize("size", mind.SIZES, ids=str)
def test_mind_of_every_shape(size: tuple[int, ...], radius: int, dilation: int) -> None:
    mind.test_the_descriptor_is_that_of_the_definition(size, radius, dilation, "cuda")


def test_mind_at_its_edges() -> None:
    mind.test_the_limits_of_v_are_constants_for_the_gradient("cuda")
    mind.test_an_image_of_one_value("cuda")
    mind.test_an_axis_of_one_voxel_has_equal_channels("cuda")
    mind.test_what_is_not_finite_spoils_its_own_image_only("cuda", float("inf"))
    mind.test_the_mask_weighs_the_map("cuda")


@pytest.mark.parametrize("shape", [(1, 2, 30, 5, 6), (5, 1, 3, 4, 3), (1, 2, 90, 31)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_mind_in_slabs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Slabs of planes or rows, and groups of volumes: the tests' workspace is small."""
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(shape, generator=generator).to(dtype).requires_grad_() for _ in range(2)]
    doubles = [image.detach().double().requires_grad_() for image in images]
    with uk.use_backend("cuda"):
        loss = uk.mind_loss(*images)
        gradients = torch.autograd.grad(loss, images)
    with uk.use_backend("reference"):
        expected = uk.mind_loss(*doubles)
        wanted = torch.autograd.grad(expected, doubles)
    assert_close(loss, expected, LOSS_TOLERANCE[dtype])
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[dtype])


# ---- warp and composition --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", INTERPOLATIONS)
@pytest.mark.parametrize("dims", [2, 3])
def test_warp_equals_grid_sample(dims: int, mode: str, padding_mode: str) -> None:
    for kind in ("anywhere", "centres and halves"):
        warps.test_equals_grid_sample("cuda", dims, mode, padding_mode, kind)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_warp_at_the_edges(padding_mode: str) -> None:
    warps.test_an_affine_is_the_field_that_it_makes("cuda", padding_mode)
    warps.test_an_axis_of_one_voxel("cuda", padding_mode)
    for mode in INTERPOLATIONS:
        for bad in (float("nan"), float("inf"), float("-inf")):
            warps.test_coordinates_that_are_not_finite("cuda", mode, padding_mode, bad)


def test_warp_far_outside() -> None:
    for mode in INTERPOLATIONS:
        for far in (1e9, -1e9, 3e38, -3e38):
            warps.test_far_outside("cuda", mode, far)


def test_warp_gradients() -> None:
    warps.test_many_voxels_that_look_at_the_same_one("cuda")
    warps.test_incoming_gradients_that_are_not_finite("cuda")
    for exponent in (-120, 120):
        warps.test_gradients_of_any_magnitude("cuda", exponent)


def test_warp_for_whole_batches_and_in_halves() -> None:
    warps.test_one_affine_for_the_whole_batch("cuda")
    warps.test_composition_is_one_warp_after_the_other("cuda")
    for dtype in (torch.float16, torch.bfloat16):
        warps.test_half_precision_has_float32_coordinates_and_values("cuda", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("shape", "size"), WARPED_SHAPES.values(), ids=WARPED_SHAPES)
def test_warp_shape(shape: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_warps_like_the_reference("cuda", shape, size, dtype)


@pytest.mark.parametrize("op", random_warps.OPS)
def test_random_warps(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_warps, "CASES", 300)
    random_warps.test_random_calls(op, "cuda")


# ---- mutual information: histograms of blocks, in shared memory or where that has no room for them -------------------


@pytest.mark.parametrize("kernel", PARZEN_KERNELS)
@pytest.mark.parametrize(
    ("shape", "mask", "arguments"),
    [
        ((2, 2, 50, 60), 1, {"reduction": "none"}),  # several blocks per item
        ((1, 3, 7, 8, 9), 3, {"num_bins": 74}),  # the most that shared memory holds
        ((1, 2, 40), 0, {"num_bins": 75, "normalized": True}),
        ((2, 1, 30, 20), 1, {"num_bins": 256}),
        ((1, 1, 300), 0, {"num_bins": 20, "sigma_ratio": 0.05}),
        ((1, 1, 1), 0, {}),
    ],
    ids=str,
)
def test_mutual_information(kernel: str, shape: tuple[int, ...], mask: int, arguments: dict[str, object]) -> None:
    images = [(1.2 * torch.rand(shape, dtype=torch.float64) - 0.1).requires_grad_() for _ in range(2)]
    weights = 3.0 * torch.rand(shape[0], mask, *shape[2:], dtype=torch.float64) if mask else None
    found = []
    for backend in ("cuda", "reference"):
        with uk.use_backend(backend):
            loss = uk.mutual_information_loss(*images, kernel=kernel, mask=weights, **arguments)
            incoming = torch.arange(1, loss.numel() + 1).view(loss.shape).to(loss)
            found.append([loss.detach(), *torch.autograd.grad(loss, images, incoming)])
    assert_close(found[0][0], found[1][0], LOSS_TOLERANCE[torch.float64], floor=1e-14)
    floor = 1e-12 if images[0].numel() == 1 else 0.0  # of one voxel everything cancels: what is left is rounding
    for gradient, wanted in zip(found[0][1:], found[1][1:], strict=True):
        assert_close(gradient, wanted, GRADIENT_TOLERANCE[torch.float64], floor)


@pytest.mark.parametrize("kernel", PARZEN_KERNELS)
def test_edges_of_mutual_information(kernel: str) -> None:
    with uk.use_backend("cuda"):
        for normalized in (False, True):
            information.test_a_left_out_voxel_has_no_influence(kernel, normalized)
            information.test_an_empty_mask_counts_nothing(kernel, normalized)
            information.test_the_definition_in_loops(kernel, normalized, channels=1)
        information.test_a_constant_image_tells_nothing(kernel)
        information.test_values_between_two_bins_go_to_both(kernel)
        information.test_half_precision_is_exact(kernel)
        for bad in (float("nan"), -float("inf")):
            information.test_what_is_not_finite_is_never_hidden(kernel, bad)


def test_weights_of_any_magnitude() -> None:
    """Histograms are integers, in units of the largest weight of an item."""
    images = [torch.rand(2, 1, 300, dtype=torch.float64) for _ in range(2)]
    with uk.use_backend("cuda"):
        wanted = uk.mutual_information_loss(*images, mask=torch.ones(2, 1, 300), reduction="none")
        for exponent in (-300, 300):
            mask = torch.tensor([2.0**exponent, 2.0**-exponent], dtype=torch.float64).view(2, 1, 1).expand(2, 1, 300)
            assert_close(uk.mutual_information_loss(*images, mask=mask, reduction="none"), wanted, 1e-15)


# ---- random calls, and wrong ones ------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", sorted(op for op in LOSSES if "cuda" in dispatch._backends[op]))
def test_random_calls(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_cases, "CASES", 80 if op == "mind" else 300)
    if op == "lncc":  # the mean of a few voxels is no better than a voxel
        monkeypatch.setattr(random_cases, "LOSS_TOLERANCE", MAP_TOLERANCE)
    random_cases.test_random_calls(op, "cuda")


def test_a_program_needs_the_headers_alone(tmp_path: Path) -> None:
    build.build_program(build.HERE.with_name("standalone.cu"), tmp_path / "standalone")
    done = subprocess.run([tmp_path / "standalone"], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize(
    ("kernel", "outcome"),
    [
        ("if (threadIdx.x != 3) __shfl_down_sync(~0u, 1.0f, 1);", "names lane 3, which is not there"),
        ("if (threadIdx.x % 2) __syncthreads(); else __shfl_down_sync(~0u, 1.0f, 1);", "threads that never come"),
        (
            "if (threadIdx.x % 2) __shfl_up_sync(~0u, 1.0f, 1); else __shfl_down_sync(~0u, 1.0f, 1);",
            "different shuffles",
        ),
        ('if (!threadIdx.x) std::printf("%f", *reinterpret_cast<float*>(usreg::cuda::block_memory));', "nan"),
    ],
    ids=["exited lane", "barrier", "two shuffles", "shared memory"],
)
def test_what_cuda_leaves_undefined_is_found(kernel: str, outcome: str, tmp_path: Path) -> None:
    """By the stand-in for CUDA, which the tests above rely on."""
    source = tmp_path / "kernel.cu"
    source.write_text(f"""
        #include <cstdio>
        #include <stdexcept>
        #include "cuda/support/reduction.cuh"
        void kernel() {{ {kernel} }}
        int main() {{
          cudaLaunchConfig_t config;
          config.blockDim = dim3(64);
          config.dynamicSmemBytes = 64;
          try {{
            cudaLaunchKernelEx(&config, kernel);
          }} catch (const std::runtime_error& error) {{
            std::puts(error.what());
          }}
        }}
    """)
    build.build_program(source, tmp_path / "program")
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)
    assert outcome in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_under_address_sanitizer() -> None:
    """Every feature once more, in a process whose kernels are compiled with the sanitizers."""
    flags = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # -O1 compiles more than twice as long
    runtimes = [
        subprocess.run([str(build.COMPILER), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("the compiler has no sanitizers")
    build.build(tuple(flags))  # before anything is preloaded
    environment = {
        **os.environ,
        "USREG_CUDA_ON_CPU_FLAGS": " ".join(flags),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep what they allocate
    }
    # The values that a field's loss reads do not change where it reads.
    tests = "(agrees or feature or chunks or smoothing or odd or random or empty or strides or finite or step or warp)"
    tests += " and not ((mind or mutual) and float16)"  # long ones, which read the halves as other ops do
    tests += " and not (agrees and bfloat16)"  # which is read where float16 is
    tests += " and not opcheck and not gradcheck and not gradgradcheck and not field_voxels and not compile"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=build.ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
