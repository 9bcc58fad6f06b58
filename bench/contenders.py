"""What a user could pick: our backends, and everything else that computes the same loss.

Each contender builds its loss for a case, or raises :class:`Absent` with the reason why it cannot take part.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
import torch.nn.functional as F

import usreg_kernels as uk
from bench.cases import Case, Loss
from bench.plain import (
    VARIANCE_FLOOR,
    conv_lncc,
    finite_differences,
    folding,
    mind,
    pooled_lncc,
    separable_conv_lncc,
    supervision,
)
from usreg_kernels.dispatch import machine_reasons
from usreg_kernels.functional import LOSSES

NUM_BINS = 32
"""Our default for mutual information."""

REFERENCE = "USReg reference"
"""The oracle's name among the contenders."""


class Absent(Exception):
    """A contender cannot take part; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One way to compute a loss.

    Attributes:
        name: as tables show it.
        build: makes the loss function of the case's tensors; raises :class:`Absent`.
        ours: whether its result must be right for any speed to be shown.
        compiles: its first run takes long, and says nothing about the next.
        standard: what users have today, timed however long it takes.
    """

    name: str
    build: Callable[[Case], Loss]
    ours: bool = False
    compiles: bool = False
    standard: bool = False


def contenders(op: str) -> list[Contender]:
    """All contenders of an op, ours first."""
    ours = [_backend(op, name) for name in ("cpu", "triton", "cuda", "reference")]
    return ours + _OTHERS[op]()


def compiled(contender: Contender) -> Contender:
    """The same under ``torch.compile``."""

    def build(case: Case) -> Loss:
        return torch.compile(contender.build(case), dynamic=False)

    return Contender(f"{contender.name}, compiled", build, compiles=True)


def absent(contender: Contender, reason: str) -> Contender:
    """The same, kept out for a reason."""

    def build(case: Case) -> Loss:
        raise Absent(reason)

    return replace(contender, build=build)


def _backend(op: str, name: str) -> Contender:
    def build(case: Case) -> Loss:
        reason = machine_reasons(op)[name]
        if reason is not None:
            raise Absent(reason)

        def loss(*inputs: torch.Tensor) -> torch.Tensor:
            with uk.use_backend(name):
                return LOSSES[op](*inputs, **case.arguments)

        return loss

    return Contender(f"USReg {name}", build, ours=True, compiles=name == "triton")


def _lncc() -> list[Contender]:
    monai = Contender("MONAI", _monai_lncc, standard=True)
    pooled = Contender("PyTorch avg_pool", lambda case: pooled_lncc(_window(case)))
    return [
        monai,
        compiled(monai),
        pooled,
        compiled(pooled),
        *_voxelmorph(),
        *_fireants(),
        Contender("fused-lncc", _fused_lncc),
    ]


def _mind() -> list[Contender]:
    pooled = Contender("PyTorch avg_pool", lambda case: mind(pooled=True))
    summed = Contender("PyTorch, shifted sums", lambda case: mind(pooled=False))
    return [pooled, compiled(pooled), summed, compiled(summed)]


def _smoothness() -> list[Contender]:
    plain = Contender("PyTorch differences", _differences)
    return [plain, compiled(plain), Contender("MONAI", _monai_diffusion, standard=True)]


def _bending_energy() -> list[Contender]:
    monai = Contender("MONAI", lambda case: _module("monai.losses").BendingEnergyLoss(), standard=True)
    return [monai, compiled(monai)]


def _dvf_mse() -> list[Contender]:
    plain = Contender("PyTorch mse_loss", lambda case: F.mse_loss)
    return [plain, compiled(plain)]


def _dvf_supervision() -> list[Contender]:
    plain = Contender("PyTorch mse_loss and differences", lambda case: supervision())
    monai = Contender("MONAI", _monai_diffusion, standard=True)
    return [
        plain,
        compiled(plain),
        absent(monai, "its DiffusionLoss takes central differences, this loss forward ones"),
    ]


def _folding() -> list[Contender]:
    plain = Contender("PyTorch gradient", lambda case: folding)
    return [plain, compiled(plain)]


def _mutual_information() -> list[Contender]:
    monai = Contender("MONAI", _monai_mutual_information, standard=True)
    return [monai, compiled(monai)]


_OTHERS: dict[str, Callable[[], list[Contender]]] = {
    "lncc": _lncc,
    "mind": _mind,
    "gradient_smoothness": _smoothness,
    "bending_energy": _bending_energy,
    "dvf_mse": _dvf_mse,
    "dvf_supervision": _dvf_supervision,
    "folding": _folding,
    "mutual_information": _mutual_information,
}


def _module(name: str) -> ModuleType:
    if (reason := import_failure(name)) is not None:
        raise Absent(reason)
    return import_module(name)


@cache
def import_failure(name: str) -> str | None:
    """Why a module of an optional package cannot be imported, which may fail in any way."""
    try:
        with third_party_warnings_ignored():
            import_module(name)
    except Exception as error:
        return f"{name} cannot be imported: {error}"
    return None


@contextmanager
def third_party_warnings_ignored() -> Iterator[None]:
    """What contenders warn about is not ours to put right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _window(case: Case) -> int:
    assert case.window is not None
    return case.window


def _monai_lncc(case: Case) -> Loss:
    return _module("monai.losses").LocalNormalizedCrossCorrelationLoss(len(case.shape) - 2, _window(case))


def _monai_diffusion(case: Case) -> Loss:
    if case.scheme != "central":
        raise Absent("its DiffusionLoss takes only central differences")
    return _module("monai.losses").DiffusionLoss()


def _monai_mutual_information(case: Case) -> Loss:
    return _module("monai.losses").GlobalMutualInformationLoss(case.scheme, num_bins=NUM_BINS)


def _differences(case: Case) -> Loss:
    return finite_differences(central=case.scheme == "central")


def _voxelmorph() -> list[Contender]:
    """VoxelMorph's own NCC, which its releases from 0.3 on take from neurite; else its published formula."""

    def build(case: Case) -> Loss:
        ncc = _module("neurite.nn.modules").NCC(window_size=_window(case))
        return lambda pred, target: -ncc(pred, target).squeeze()

    own = Contender("VoxelMorph (neurite)", build)
    formula = Contender("VoxelMorph's formula, conv", lambda case: conv_lncc(_window(case)))
    return _or_formula(own, "neurite.nn.modules", formula)


def _fireants() -> list[Contender]:
    """FireANTs' own loss in plain PyTorch; else its formula. Its fused loss, for GPUs, needs more than its package.

    Its window sums to 1 and its smoothing terms are added: they are set so small that its value is that of the others.
    """

    def build(case: Case) -> Loss:
        dims = len(case.shape) - 2
        floor = VARIANCE_FLOOR / _window(case) ** (2 * dims)
        loss = _module("fireants.losses.cc").LocalNormalizedCrossCorrelationLoss
        return loss(dims, _window(case), smooth_nr=0.0, smooth_dr=floor)

    own = Contender("FireANTs (not fused)", build)
    formula = Contender("FireANTs' formula, separable conv", lambda case: separable_conv_lncc(_window(case)))
    return _or_formula(own, "fireants.losses.cc", formula)


def _or_formula(own: Contender, module: str, formula: Contender) -> list[Contender]:
    """The package's loss; where it cannot be imported, the reason, and the formula in its place."""
    reason = import_failure(module)
    return [own] if reason is None else [absent(own, f"{reason} (`make contenders`)"), formula]


def _fused_lncc(case: Case) -> Loss:
    if not torch.cuda.is_available():
        raise Absent("fused-lncc needs an NVIDIA GPU")
    if len(case.shape) != 5:
        raise Absent("fused-lncc takes only volumes")
    fused = _module("fused_lncc").fused_lncc_loss
    return lambda pred, target: fused(pred, target, _window(case)) - 1.0
