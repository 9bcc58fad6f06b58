"""What is compared: ops, shapes from real use, dtypes, windows and passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import torch

Loss = Callable[..., torch.Tensor]

INPUTS = {
    "lncc": 2,
    "mind": 2,
    "gradient_smoothness": 1,
    "bending_energy": 1,
    "dvf_mse": 2,
    "dvf_supervision": 2,
    "folding": 1,
    "mutual_information": 2,
}
"""How many tensors each op takes."""

OF_IMAGES = ("lncc", "mind", "mutual_information")
"""The losses of two images; the others take fields."""

IMAGES: dict[str, tuple[int, ...]] = {
    "tiny": (1, 1, 20, 24, 28),
    "64": (2, 1, 64, 64, 64),
    "96": (1, 1, 96, 96, 96),
    "128": (1, 1, 128, 128, 128),
    "brain": (1, 1, 160, 192, 224),
    "2d": (8, 1, 512, 512),
    "wide": (2, 16, 128, 128, 128),
}
"""Shapes by the name that ``--bench-shapes`` takes: ``brain`` is the size that brain registration is published in,
``2d`` a batch of slices, ``wide`` a batch of feature maps (GPUs only), ``tiny`` a trial of the benchmark itself."""

SHAPES_OF_FIELDS = ("64", "96", "128", "brain")
SHAPES_OF_MIND = ("64", "128", "brain")
SHAPES_OF_SUPERVISION = ("64", "brain")  # its terms are benchmarks of their own
SHAPES_OF_MUTUAL_INFORMATION = ("128", "brain")  # others take seconds
SHAPES = {"cpu": ("64", "96", "128", "brain", "2d"), "cuda": ("64", "96", "128", "brain", "2d", "wide")}
"""By device, the shapes of LNCC that run where none are chosen."""

EAGER_SHAPES = ("96", "2d")
"""Those that the short run compiles nothing for: it would take a minute of its ten."""

WINDOW = 9
WINDOWS = (3, 5, 9)
TRAINED_WINDOWS = (3, 9)  # MONAI's default and VoxelMorph's
ALL_WINDOWS = (3, 5, 7, 9, 11, 15)
SCHEMES = {"gradient_smoothness": ("forward", "central"), "mutual_information": ("b-spline", "gaussian")}
DTYPES = (torch.float32, torch.bfloat16)
ALL_DTYPES = (*DTYPES, torch.float16, torch.float64)
PASSES = (True, False)
"""Values of :attr:`Case.backward`."""


@dataclass(frozen=True)
class Case:
    """One comparison: all its contenders get the same numbers.

    Attributes:
        op: a key of ``usreg_kernels.functional.LOSSES``.
        shape: of each input tensor.
        dtype: of each input tensor.
        backward: forward and backward, or only forward, without a gradient.
        window: LNCC's ``kernel_size``; None for the other ops.
        scheme: of the gradient smoothness; the windows of mutual information; None for the other ops.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    backward: bool = True
    window: int | None = None
    scheme: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of our function."""
        given = {"kernel_size": self.window, "kernel" if self.takes_images else "scheme": self.scheme}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def takes_images(self) -> bool:
        """Whether inputs are images; else they are fields."""
        return self.op in OF_IMAGES

    @property
    def passes(self) -> str:
        """The passes in words."""
        return "forward+backward" if self.backward else "forward"

    @property
    def dtype_name(self) -> str:
        """The dtype without ``torch.``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_compiled(self) -> bool:
        """Whether the short run compiles contenders for it: what training usually runs, but not in every shape."""
        usual = self.backward and self.dtype == torch.float32 and self.window in (None, *TRAINED_WINDOWS)
        return usual and self.shape[2:] not in [IMAGES[name][2:] for name in EAGER_SHAPES]

    @property
    def name(self) -> str:
        """In words, for titles and test ids; without blanks."""
        kind = "windows" if self.takes_images else "differences"
        extra = [f"window{self.window}"] * (self.window is not None) + [f"{self.scheme}_{kind}"] * (
            self.scheme is not None
        )
        return "-".join(["x".join(map(str, self.shape)), self.dtype_name, *map(str, extra), self.passes])

    @property
    def voxels(self) -> int:
        """Voxels of an input: each channel of an image counts, the components of a field count as one."""
        return prod(self.shape) if self.takes_images else prod(self.shape) // self.shape[1]

    @property
    def least_bytes(self) -> int:
        """What any implementation must move: read each input once, and write one gradient."""
        return (INPUTS[self.op] + self.backward) * prod(self.shape) * self.dtype.itemsize


def make_inputs(case: Case, seed: int, device: str = "cpu") -> list[torch.Tensor]:
    """Uniform noise; the first input needs a gradient where there is a backward pass."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.rand(case.shape, generator=generator).to(device, case.dtype) for _ in range(INPUTS[case.op])]
    made[0].requires_grad_(case.backward)
    return made


def cases(op: str, device: str = "cpu", full: bool = False, chosen: Sequence[str] = ()) -> list[Case]:
    """The comparisons of an op, small ones first, each once.

    Args:
        op: a key of ``LOSSES``.
        device: ``"cpu"`` or ``"cuda"``.
        full: every combination of shape, dtype, window or scheme, and pass; else every shape once, and the first with
            each variation.
        chosen: names of shapes that replace the device's.
    """
    found = {"lncc": _lncc_cases, "mind": _mind_cases}.get(op, _field_cases)
    return sorted(dict.fromkeys(found(op, device, full, chosen)), key=lambda case: case.voxels)


def _lncc_cases(op: str, device: str, full: bool, chosen: Sequence[str]) -> Iterator[Case]:
    names = chosen or SHAPES[device]
    for name in names:
        base = Case(op, IMAGES[name], window=WINDOW)
        if full:
            yield from (
                replace(base, window=window, dtype=dtype, backward=backward)
                for window, dtype, backward in product(ALL_WINDOWS, ALL_DTYPES, PASSES)
            )
            continue
        yield base
        if name == names[0]:
            yield replace(base, backward=False)
            yield from (replace(base, window=window) for window in WINDOWS)
            yield from (replace(base, dtype=dtype) for dtype in DTYPES)


def _mind_cases(op: str, device: str, full: bool, chosen: Sequence[str]) -> Iterator[Case]:
    names = [name for name in chosen or SHAPES_OF_MIND if len(IMAGES[name]) == 5]
    for name in names:
        base = Case(op, IMAGES[name])
        combinations = product(ALL_DTYPES, PASSES) if full else [(torch.float32, True)]
        yield from (replace(base, dtype=dtype, backward=backward) for dtype, backward in combinations)
        if name == names[0]:
            yield replace(base, backward=False)


def _field_cases(op: str, device: str, full: bool, chosen: Sequence[str]) -> Iterator[Case]:
    fewer = {"dvf_supervision": SHAPES_OF_SUPERVISION, "mutual_information": SHAPES_OF_MUTUAL_INFORMATION}
    usual = SHAPES_OF_FIELDS if full else fewer.get(op, SHAPES_OF_FIELDS)
    names = [name for name in chosen or usual if len(IMAGES[name]) == 5 and IMAGES[name][1] == 1]
    for name in names:
        batch, _, *spatial = IMAGES[name]
        for scheme in SCHEMES.get(op, (None,)):
            base = Case(op, (batch, 1 if op == "mutual_information" else 3, *spatial), scheme=scheme)
            if full:
                combinations = product(ALL_DTYPES, PASSES)
                yield from (replace(base, dtype=dtype, backward=backward) for dtype, backward in combinations)
                continue
            yield base
            if name == names[0]:
                yield replace(base, backward=False)
