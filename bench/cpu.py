"""``python -m bench.cpu``: forward and backward on the CPU, our kernels against MONAI and plain PyTorch.

Prints ratios of medians from interleaved turns, after checking each result against the float64 reference. The largest
volume takes MONAI some 20 seconds a step: ``--quick`` leaves out everything above 128^3.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import usreg_kernels as uk
from bench.contenders import Loss, eager_smoothness, monai_bending_energy, monai_lncc, step, torch_lncc
from bench.timing import Times, interleave

BRAIN = (1, 1, 160, 192, 224)
CUBE = (1, 1, 128, 128, 128)
BATCH = (2, 1, 64, 64, 64)


@dataclass(frozen=True)
class Row:
    """One comparison: ours against the others on one set of inputs."""

    title: str
    ours: Loss
    others: dict[str, Loss]
    shape: tuple[int, ...]
    inputs: int = 2
    rounds: int = 5


def lncc(**arguments: object) -> Loss:
    """Our LNCC with its arguments bound."""
    return lambda pred, target: uk.lncc_loss(pred, target, **arguments)  # type: ignore[arg-type]


def rows(quick: bool) -> Iterator[Row]:
    """The comparisons, small volumes first."""
    for shape, window, rounds in ((BATCH, 9, 7), (CUBE, 3, 5), (CUBE, 9, 5), (BRAIN, 9, 3)):
        if quick and shape == BRAIN:
            continue
        others = {"MONAI": monai_lncc(window), "PyTorch, compiled": torch_lncc(window)}
        yield Row(f"LNCC, window {window}", lncc(kernel_size=window), others, shape, rounds=rounds)
    spatial = CUBE[2:] if quick else BRAIN[2:]
    field = (1, 3, *spatial)
    smooth = uk.gradient_smoothness_loss
    yield Row("smoothness", smooth, {"PyTorch": eager_smoothness}, field, inputs=1)
    yield Row("bending energy", uk.bending_energy_loss, {"MONAI": monai_bending_energy}, field, inputs=1)
    yield Row("DVF MSE", uk.dvf_mse_loss, {"PyTorch": torch.nn.functional.mse_loss}, field)


def make_inputs(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Uniform noise; the first input needs a gradient."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.rand(shape, generator=generator).to(dtype) for _ in range(count)]
    made[0].requires_grad_()
    return made


def check(row: Row, inputs: list[torch.Tensor]) -> None:
    """Our loss and gradient against the float64 reference."""
    value = step(row.ours, *inputs)().item()
    gradient = inputs[0].grad
    assert gradient is not None
    oracle = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    with uk.use_backend("reference"):
        expected = step(row.ours, *oracle)().item()
    wanted = oracle[0].grad
    assert wanted is not None
    error = ((gradient - wanted).norm() / wanted.norm()).item()
    if abs(value - expected) > 1e-6 * abs(expected) or error > 1e-5:
        raise SystemExit(f"{row.title} is wrong: loss {value} for {expected}, gradient off by {error:.2g}")


def compare(row: Row) -> dict[str, Times]:
    """The times of one comparison, ours first."""
    inputs = make_inputs(row.shape, row.inputs)
    check(row, inputs)
    contenders: dict[str, Callable[[], object]] = {"ours": step(row.ours, *inputs)}
    contenders |= {name: step(loss, *inputs) for name, loss in row.others.items()}
    return interleave(contenders, row.rounds, seconds_per_turn=0.5)


def streaming(shape: tuple[int, ...]) -> Callable[[], object]:
    """Reading two volumes and writing a third: the least that forward and backward can take."""
    a, b, c = (torch.rand(shape) for _ in range(3))
    return lambda: torch.add(a, b, alpha=2.0, out=c)


def variants() -> Iterator[tuple[str, float]]:
    """Ratios between our own variants of LNCC with window 9 on one volume, each from one interleaved run."""

    def ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
        times = interleave({"first": first, "second": second}, 7, seconds_per_turn=0.5)
        return times["first"].median / times["second"].median

    pred, target = make_inputs(CUBE, 2)
    both = [tensor.detach().clone().requires_grad_() for tensor in (pred, target)]
    base = step(lncc(kernel_size=9), pred, target)
    yield "both gradients / one", ratio(step(lncc(kernel_size=9), *both), base)
    for dtype in (torch.float16, torch.bfloat16):
        half = make_inputs(CUBE, 2, dtype)
        yield f"{str(dtype).removeprefix('torch.')} / float32", ratio(step(lncc(kernel_size=9), *half), base)
    yield "window 15 / window 9", ratio(step(lncc(kernel_size=15), pred, target), base)
    gaussian = step(lncc(kernel_size=9, kernel_type="gaussian"), pred, target)
    yield "gaussian / rectangular", ratio(gaussian, base)
    yield "two threads' speed / one's", ratio(_with_threads(1, base), _with_threads(2, base))
    large, small = make_inputs(BRAIN, 2), make_inputs(BATCH, 2)
    per_voxel = ratio(step(lncc(kernel_size=9), *large), step(lncc(kernel_size=9), *small))
    yield "time per voxel, 160x192x224 / 2x64^3", per_voxel * small[0].numel() / large[0].numel()
    yield "window 9 / streaming, 160x192x224", ratio(step(lncc(kernel_size=9), *large), streaming(BRAIN))


def _with_threads(count: int, run: Callable[[], object]) -> Callable[[], object]:
    def inner() -> None:
        torch.set_num_threads(count)
        run()

    return inner


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="nothing above 128^3")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {uk.library.cpu_capability()}, {options.threads} threads\n"
    )
    print("| forward + backward | shape | ours, ms | others / ours (others, ms) |\n|---|---|---|---|")
    for row in rows(options.quick):
        times = compare(row)
        ours = times.pop("ours")
        others = "; ".join(f"{n} {t.median / ours.median:.0f}x ({1e3 * t.median:.0f})" for n, t in times.items())
        shape = " x ".join(map(str, row.shape))
        print(f"| {row.title} | {shape} | {1e3 * ours.median:.2f} ± {100 * ours.spread:.0f} % | {others} |", flush=True)
    print("\n| LNCC, window 9, 128^3 where not said | ratio |\n|---|---|")
    for name, value in variants():
        print(f"| {name} | {value:.2f} |", flush=True)


if __name__ == "__main__":
    main()
