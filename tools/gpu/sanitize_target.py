"""``python -m tools.gpu.sanitize_target``: each GPU kernel once or a few times, on small shapes with borders.

compute-sanitizer runs it as it is. ``--check`` also compares every output and gradient with the float64 reference on
the CPU: the first thing to run on a new GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE, MAP_TOLERANCE
from usreg_kernels import functional
from usreg_kernels.dispatch import machine_reasons
from usreg_kernels.optim import Scale

Function = Callable[..., torch.Tensor]

IMAGE = (1, 2, 11, 13, 35)  # odd sizes, rows that fill no tile
FIELD = (1, 3, 11, 13, 35)
MASK = (1, 1, 11, 13, 35)
AFFINE = (1, 3, 4)
CHECKED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def adam(gradient: torch.Tensor, scale: Scale) -> torch.Tensor:
    """The update of a third step of Adam, whose moments come from the gradient; half precision counts as float32."""
    grad = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
    step = torch.full((), 2.0, device=grad.device)
    return uk.optim.adam_step(grad, 1 - grad, grad.square(), step, lr=0.1, scale=scale)


FUNCTIONS: dict[str, Function] = {**functional.FUNCTIONS, "field_adam": adam}
"""The function of each op, by the op's name."""


@dataclass(frozen=True)
class Call:
    """A call of an op.

    Attributes:
        op: its name.
        shapes: of the tensors.
        arguments: keyword arguments.
        gradients: of how many of the tensors a gradient is wanted.
        named: the last tensor is a keyword argument of this name.
    """

    op: str
    shapes: tuple[tuple[int, ...], ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    gradients: int = 1
    named: str | None = None

    def __str__(self) -> str:
        words = [self.op, *("x".join(map(str, shape)) for shape in self.shapes)]
        words += [f"{name}={value}" for name, value in self.arguments.items()]
        words += [self.named] * (self.named is not None) + [f"{self.gradients} gradients"] * (self.gradients != 1)
        return " ".join(words)


def calls() -> Iterator[Call]:
    """Enough of them to reach every kernel."""
    yield from _losses()
    for padding in ("border", "zeros", "reflection"):
        yield Call("warp", (IMAGE, FIELD), {"padding_mode": padding}, gradients=2)
    yield Call("warp", (IMAGE, FIELD), {"mode": "nearest"})
    yield Call("warp", (IMAGE, AFFINE), gradients=2, named="affine")
    yield Call("warp", ((2, 3, 40, 50), (2, 2, 41, 51)), gradients=2)
    yield Call("compose_ddf", (FIELD, FIELD), gradients=2)
    yield Call("integrate_velocity", (FIELD,), {"steps": 2})
    yield Call("jacobian_determinant", (FIELD,))
    yield Call("mind_ssc", (IMAGE,))
    for padding in ("border", "zeros", "reflection"):
        yield Call("gaussian_smooth", (IMAGE,), {"sigma": 1.0, "padding_mode": padding})
    for scale in ("none", "longest"):
        yield Call("field_adam", (FIELD,), {"scale": scale}, gradients=0)


def _losses() -> Iterator[Call]:
    images, fields = (IMAGE, IMAGE), (FIELD, FIELD)
    for window in (3, 7, 9, 15):
        yield Call("lncc", images, {"kernel_size": window}, gradients=2)
    yield Call("lncc", images, {"kernel_size": 9})
    yield Call("lncc", images, {"kernel_size": 9}, gradients=0)
    yield Call("lncc", images, {"kernel_size": 7, "reduction": "none"}, gradients=2)
    yield Call("lncc", (*images, MASK), {"kernel_size": 5}, named="mask")
    yield Call("lncc", ((1, 1, 9, 21, 64),) * 2, {"kernel_size": 5, "kernel_type": "gaussian"}, gradients=2)
    yield Call("lncc", ((1, 1, 20, 21, 40),) * 2, {"kernel_size": 17})  # beyond the marches
    yield Call("lncc", ((2, 1, 40, 50),) * 2, {"kernel_size": 9}, gradients=2)
    yield Call("mind", images, gradients=2)
    yield Call("mind", (*images, MASK), {"radius": 1, "dilation": 3}, named="mask")
    yield Call("mind", ((2, 1, 40, 50),) * 2, {"reduction": "none"})
    for kernel in ("b-spline", "gaussian"):
        yield Call("mutual_information", images, {"kernel": kernel}, gradients=2)
        yield Call("mutual_information", (*images, MASK), {"kernel": kernel, "normalized": True}, named="mask")
        yield Call("mutual_information", ((2, 1, 20, 21),) * 2, {"kernel": kernel, "num_bins": 80}, gradients=2)
    for arguments in ({}, {"scheme": "central", "penalty": "l1"}, {"reduction": "none"}):
        yield Call("gradient_smoothness", (FIELD,), arguments)
    for arguments in ({}, {"reduction": "none"}):
        yield Call("bending_energy", (FIELD,), arguments)
        yield Call("dvf_mse", fields, arguments, gradients=2)
        yield Call("folding", (FIELD,), {**arguments, "margin": 0.9})
    yield Call("dvf_supervision", fields)
    yield Call("dvf_supervision", fields, gradients=2)


def inputs(call: Call, dtype: torch.dtype) -> list[torch.Tensor]:
    """Noise."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator).to(dtype) for shape in call.shapes]


def step(call: Call, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The output and the gradients, for an incoming gradient of 2."""
    leaves = [tensor.detach().requires_grad_(i < call.gradients) for i, tensor in enumerate(tensors)]
    wanted = leaves[: call.gradients]
    named = {} if call.named is None else {call.named: leaves.pop()}
    output = FUNCTIONS[call.op](*leaves, **call.arguments, **named)
    return [output.detach(), *(torch.autograd.grad(output, wanted, torch.full_like(output, 2.0)) if wanted else ())]


def reference(call: Call, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same in float64 by the oracle."""
    with uk.use_backend("reference"):
        return step(call, [tensor.double() for tensor in tensors])


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The relative error of the L2 norm; infinite where anything is not finite."""
    difference = (found.double().cpu() - wanted).norm() / wanted.norm().clamp(min=1e-30)
    return difference.item() if torch.isfinite(difference) else float("inf")


def check(found: list[torch.Tensor], wanted: list[torch.Tensor], dtype: torch.dtype) -> tuple[bool, list[float]]:
    """Whether an output and its gradients are as exact as the tests ask for, and their errors."""
    errors = [error(one, other) for one, other in zip(found, wanted, strict=True)]
    limits = [
        (MAP_TOLERANCE if wanted[0].ndim else LOSS_TOLERANCE)[dtype],
        *[GRADIENT_TOLERANCE[dtype]] * (len(errors) - 1),
    ]
    return all(one <= most for one, most in zip(errors, limits, strict=True)), errors


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status says whether anything was wrong, or nothing ran."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.sanitize_target", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the float64 reference on the CPU")
    parser.add_argument("--backend", nargs="+", default=["triton", "cuda"], help="of `python -m usreg_kernels`")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--part", default="0/1", metavar="PART/PARTS", help="a part of the calls, for several processes"
    )
    options = parser.parse_args(arguments)
    part, parts = map(int, options.part.split("/"))
    ran, wrong, absent, worst = 0, 0, set(), 0.0
    pairs = list(product(calls(), CHECKED_DTYPES if options.check else (torch.float32,)))
    for call, dtype in pairs[part::parts]:
        tensors = inputs(call, dtype)
        wanted = reference(call, tensors) if options.check else []
        for backend in options.backend:
            if (reason := machine_reasons(call.op)[backend]) is not None:
                absent.add(f"{call.op} has no {backend}: {reason}")
                continue
            try:
                with uk.use_backend(backend):
                    found = step(call, [tensor.to(options.device) for tensor in tensors])
            except uk.BackendError:
                continue  # it declines this window or dtype
            ran += 1
            if options.check:
                good, errors = check(found, wanted, dtype)
                wrong += not good
                worst = max(worst, *errors) if dtype == torch.float32 else worst
                state, name = "ok   " if good else "WRONG", str(dtype).removeprefix("torch.")
                print(state, backend, name, call, *(f"{one:.1e}" for one in errors), flush=True)
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(*sorted(absent), sep="\n")
    if options.check:
        print(f"{ran} checks, {wrong} wrong; largest error in float32: {worst:.1e}")
    else:
        print(f"{ran} calls")
    if not ran and parts == 1:
        print("nothing ran: no chosen backend runs here (`python -m usreg_kernels` says why)")
    return 1 if wrong or (not ran and parts == 1) else 0


if __name__ == "__main__":
    sys.exit(main())
