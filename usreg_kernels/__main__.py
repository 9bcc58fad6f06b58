"""``python -m usreg_kernels``: what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from usreg_kernels import dispatch, library


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    names = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        names += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ", ".join(names)


def report() -> str:
    """The report as text."""
    rows = [
        ("usreg", _version("usreg")),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("triton", _version("triton")),
        ("monai", _version("monai")),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("devices", _devices()),
        ("CPU capability", library.cpu_capability() or f"none: {library.reason('cpu')}"),
    ]
    lines = [f"{name:<16}{value}" for name, value in rows]
    for op in dispatch.ops():
        lines += ["", op]
        for name, reason in dispatch.machine_reasons(op).items():
            lines.append(f"  {name:<14}{'can run' if reason is None else f'cannot run: {reason}'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
