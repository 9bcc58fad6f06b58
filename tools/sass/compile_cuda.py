"""What nvcc makes of the CUDA C++ kernels, without a GPU: their rows of :mod:`tools.sass`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.sass.compile_triton import Compiled, Launch

CSRC = Path(__file__).parents[2] / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
ELEMENTS = {"fp32": "float", "fp16": "cuda::Float16", "bf16": "cuda::BFloat16"}
"""The kernels' element types, by Triton's names of dtypes."""

_LARGEST_MARCH = 15  # whose rows are not unrolled


@dataclass(frozen=True)
class Kernel:
    """A kernel with its template arguments.

    Attributes:
        name: ``op.kernel``.
        call: what it is launched for, in the words of ``tools.sass``.
        header: of ``csrc/cuda``.
        code: the kernel, in C++.
        threads: per block.
        voxels: per thread and turn of the main loop.
        turns: of a loop inside the main loop; 1 where that is unrolled.
        has_ends: whether the main loop may be inside another, which takes the ends of a march.
        dtype: a key of ``ELEMENTS``.
    """

    name: str
    call: str
    header: str
    code: str
    threads: int
    voxels: int
    turns: int = 1
    has_ends: bool = False
    dtype: str = "fp32"

    def __str__(self) -> str:
        return f"{self.name}, {self.call}, {self.dtype}"

    def compile(self, target: str) -> Compiled:
        """The machine code for a target."""
        launch = Launch(self.name, None, (1,), {}, {"num_warps": self.threads // 32})
        return Compiled(launch, target, {"cubin": _cubin(self, target)})

    def per_voxel(self, found: Compiled) -> float:
        """Instructions per voxel of a turn of the main loop."""
        inner, longest = len(found.inner_loop), len(found.main_loop)
        if self.has_ends:
            return (inner or longest) / self.voxels
        return (longest + (self.turns - 1) * inner) / self.voxels


def _cubin(kernel: Kernel, target: str) -> bytes:
    """Compiled with the flags of setup.py, by itself."""
    assert NVCC is not None, "nvcc was not found: install the CUDA toolkit"
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        code = f"usreg::cuda::{kernel.code}"
        source.write_text(f'#include "cuda/{kernel.header}"\nusing namespace usreg;\nauto* kernel = &{code};\n')
        flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-arch={target}", f"-I{CSRC}"]
        done = subprocess.run(
            [NVCC, *flags, "-cubin", str(source), "-o", str(cubin)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return cubin.read_bytes()


def march(
    call: str, window: int, *, box: bool = True, maps: int = 3, plain: bool = True, dtype: str = "fp32"
) -> Iterator[Kernel]:
    """The kernels of the LNCC march, forward and, where maps are saved, backward."""
    arguments = f"{window // 2}, {str(box).lower()}, {maps}, {str(plain).lower()}, {ELEMENTS[dtype]}"
    turns = window if window == _LARGEST_MARCH or not box else 1
    for direction in ("forward", "backward") if maps else ("forward",):
        yield Kernel(
            f"lncc.march_{direction}",
            call,
            f"lncc/march_{direction}.cuh",
            f"lncc_march_{direction}<{arguments}>",
            threads=128,
            voxels=2,
            turns=turns,
            dtype=dtype,
        )


def _field(op: str, call: str, header: str, loss: str, gradient: str, keep_map: bool = False) -> Iterator[Kernel]:
    """The march of a field loss, forward and backward, whose main loop takes in two planes a turn."""
    code = f"sum_penalties<cuda::{loss}, {str(keep_map).lower()}>"
    yield Kernel(f"{op}.sum_penalties", call, header, code, threads=128, voxels=2)
    code = f"write_field_gradient<cuda::{gradient}>"
    yield Kernel(f"{op}.write_gradient", call, header, code, threads=128, voxels=2, has_ends=True)


def _smoothness(call: str, central: bool, penalty: str, has_map: bool = False) -> Iterator[Kernel]:
    words = [str(central).lower(), f"Penalty::{penalty}"]
    loss, gradient = [*words, "float"], [*words, str(has_map).lower(), "float"]
    return _field(
        "gradient_smoothness",
        call,
        "field_losses/smoothness.cuh",
        f"SmoothnessLoss<{', '.join(loss)}>",
        f"SmoothnessGradient<{', '.join(gradient)}>",
        has_map,
    )


def _bending(call: str, has_map: bool) -> Iterator[Kernel]:
    gradient = f"BendingGradient<{str(has_map).lower()}, float>"
    return _field("bending_energy", call, "field_losses/bending.cuh", "BendingLoss<float>", gradient, has_map)


def _adam() -> Iterator[Kernel]:
    for name, call, code, has_ends in (
        ("step_field", "plain", "write_adam_field<float, false, false>", False),
        ("update_moments", "longest", "update_moments<float>", True),  # a turn takes one component
        ("write_field", "longest", "write_adam_field<float, true, true>", False),
    ):
        header = "field_adam/field_adam.cuh"
        yield Kernel(f"field_adam.{name}", call, header, code, threads=256, voxels=4, has_ends=has_ends)


def _jacobian(op: str, kernel: str, call: str, code: str) -> Kernel:
    """A kernel for volumes, whose main loop takes a plane a turn."""
    return Kernel(f"{op}.{kernel}", call, "jacobian/jacobian.cuh", code, threads=128, voxels=1)


def _mind(op: str, name: str, call: str, arguments: str) -> Kernel:
    """A kernel of MIND-SSC; a turn of its loop takes a voxel of the window along one axis."""
    code = f"mind_{name}<{arguments}>"
    return Kernel(f"{op}.{name}", call, "mind/mind.cuh", code, threads=128, voxels=1)


def _minds() -> Iterator[Kernel]:
    for name in ("sum_z", "add_variances", "pull"):
        yield _mind("mind", name, "mean", "3, float")
    yield _mind("mind", "gather", "mean", "3, float, float")
    yield _mind("mind", "compare", "mean", "3, true, float")
    yield _mind("mind", "compare", "no gradient", "3, false, float")
    for name in ("write_descriptor", "write_slopes"):
        yield _mind("mind_ssc", name, "descriptor", "3, float")


def _warp() -> Iterator[Kernel]:
    """The warp of volumes, whose main loop takes a channel; that of the sums for an affine takes a voxel."""
    to_image = "field, gradient to image"
    for title, zeros in (("field", "false"), ("zeros", "true")):
        yield Kernel("warp.values", title, "warp/gather.cuh", f"warp_values<3, {zeros}, float>", 128, 1)
        yield Kernel("warp.slopes", title, "warp/gather.cuh", f"warp_slopes<3, {zeros}, false, float>", 128, 1)
    yield Kernel("warp.slopes", "affine", "warp/gather.cuh", "warp_slopes<3, false, true, float>", 128, 1)
    yield Kernel("warp.measure", to_image, "warp/scatter.cuh", "warp_measure<float>", 256, 8)
    yield Kernel("warp.scatter", to_image, "warp/scatter.cuh", "warp_scatter<3, false, float>", 128, 1)
    yield Kernel("warp.convert", to_image, "warp/scatter.cuh", "warp_convert<float>", 256, 1)


def _information() -> Iterator[Kernel]:
    """The kernels of mutual information, whose main loop takes a voxel."""
    for call, name, header, code in (
        ("b-spline", "measure_images", "forward", "measure_images<true, float>"),
        ("b-spline", "count", "forward", "count_bspline<true, float>"),
        ("b-spline", "sum_ends", "backward", "sum_ends<float>"),
        ("b-spline", "write_gradient", "backward", "write_bspline_gradient<float>"),
        ("gaussian", "count", "forward", "count_gaussian<true, float>"),
        ("gaussian", "write_gradients", "backward", "write_gaussian_gradients<float>"),
    ):
        path = f"mutual_information/{header}.cuh"
        yield Kernel(f"mutual_information.{name}", call, path, code, threads=256, voxels=1)


def kernels() -> Iterator[Kernel]:
    """The kernels of the table; the calls that Triton's part has too have the same names there."""
    for window in range(3, _LARGEST_MARCH + 2, 2):
        yield from march(f"window {window}", window)
    for dtype in ("fp16", "bf16"):
        yield from march("window 7", 7, dtype=dtype)
    yield from march("window 7, no gradient", 7, maps=0)
    yield from march("window 7, both gradients", 7, maps=5)
    yield from march("gaussian 7", 7, box=False, plain=False)
    yield from _smoothness("forward, l2", central=False, penalty="kSquare")
    yield from _smoothness("central, l1", central=True, penalty="kMagnitude")
    yield from _smoothness("forward, l2, map", central=False, penalty="kSquare", has_map=True)
    yield from _bending("mean", has_map=False)
    yield from _bending("map", has_map=True)
    yield from _adam()
    yield Kernel("dvf_mse.sum_errors", "mean", "dvf_mse/dvf_mse.cuh", "sum_errors<float>", threads=256, voxels=4)
    yield Kernel(
        "dvf_mse.write_gradients", "mean", "dvf_mse/dvf_mse.cuh", "write_error_gradients<float>", threads=256, voxels=4
    )
    yield _jacobian("jacobian_determinant", "write_determinants", "map", "write_determinants<3, float>")
    yield _jacobian("jacobian_determinant", "write_gradient", "map", "write_jacobian_gradient<3, false, float>")
    for call, has_map in (("mean", "false"), ("map", "true")):
        yield _jacobian("folding", "sum_shortfalls", call, f"sum_shortfalls<3, {has_map}, float>")
        yield _jacobian("folding", "write_slopes", call, f"write_slopes<3, {has_map}, float>")
    yield _jacobian("folding", "write_gradient", "mean", "write_jacobian_gradient<3, true, float>")
    # A turn of the longest loop, near the ends, takes in a row for eight results; along the last axis, four pairs.
    header, types = "gaussian_smooth/gaussian_smooth.cuh", "<float, float, float>"
    yield Kernel("gaussian_smooth.filter_rows", "sigma 1", header, f"filter_rows{types}", threads=128, voxels=8)
    yield Kernel("gaussian_smooth.filter_columns", "sigma 1", header, f"filter_columns{types}", threads=256, voxels=4)
    yield from _minds()
    yield from _warp()
    yield from _information()
