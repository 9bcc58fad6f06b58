"""``python -m tools.gpu.profile_target``: what ncu looks at. Each kernel runs once, warm, on the volume of a brain."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

import usreg_kernels as uk
from bench.cases import IMAGES
from tools.gpu.kernel_times import GPU_BACKENDS, Call, input_sets, passes
from usreg_kernels.dispatch import machine_reasons


def calls(shape: str = "brain") -> list[Call]:
    """Those whose kernels differ most."""
    windows = [Call("lncc", f"window {window}", shape, {"kernel_size": window}) for window in (3, 7, 9, 15)]
    fields = [Call(op, "", shape) for op in ("gradient_smoothness", "bending_energy", "dvf_mse", "dvf_supervision")]
    return [*windows, Call("lncc", "window 9", shape, {"kernel_size": 9}, torch.float16), *fields]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.profile_target", description=__doc__)
    parser.add_argument("--backend", nargs="+", default=list(GPU_BACKENDS), help="of `python -m usreg_kernels`")
    parser.add_argument("--shape", choices=list(IMAGES), default="brain")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tries the program, unprofiled")
    options = parser.parse_args(arguments)
    ran = 0
    for backend in options.backend:
        for call in calls(options.shape):
            if machine_reasons(call.op)[backend] is not None:
                continue
            with uk.use_backend(backend):
                _, (step,) = passes(call, input_sets(call, options.device, count=1))
                step()
                if options.device == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.profiler.start()
                step()
                if options.device == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.profiler.stop()
            ran += 1
    print(f"{ran} steps")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
