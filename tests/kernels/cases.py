"""Inputs and arguments that the kernel tests share: every op with the options that change its path."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch

import usreg_kernels as uk
from usreg_kernels.functional import FUNCTIONS
from usreg_kernels.ops.triton_backend import INTERPRETED

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SPATIAL = {1: (13,), 2: (7, 9), 3: (5, 6, 7)}

TENSORS = {
    "lncc": ("pred", "target"),
    "mind": ("pred", "target"),
    "mind_ssc": ("image",),
    "gradient_smoothness": ("dvf",),
    "bending_energy": ("dvf",),
    "dvf_mse": ("pred_dvf", "gt_dvf"),
    "dvf_supervision": ("pred_dvf", "gt_dvf"),
    "warp": ("image", "ddf"),
    "compose_ddf": ("outer", "inner"),
    "integrate_velocity": ("velocity",),
    "jacobian_determinant": ("ddf",),
    "folding": ("ddf",),
    "gaussian_smooth": ("x",),
    "mutual_information": ("pred", "target"),
}
"""The differentiable tensors of each op's function that a case gives, unless it says otherwise."""

REQUIRED: dict[str, dict[str, Any]] = {"gaussian_smooth": {"sigma": 1.0}}
"""The arguments that an op's function asks for, where a case does not give them."""

IMAGES = ("pred", "target", "image", "x")
"""Those of them that are images, of two channels; the others have one component per axis."""


def _near_identity(batch: int, dims: int, generator: torch.Generator) -> torch.Tensor:
    """Affines (B, n, n + 1) that take some voxels out of the image, and few to a voxel's centre."""
    identity = torch.eye(dims, dims + 1, dtype=torch.float64)
    return identity + 0.4 * (torch.rand(batch, dims, dims + 1, generator=generator, dtype=torch.float64) - 0.5)


@dataclass(frozen=True)
class Case:
    """One way to call an op."""

    op: str
    dims: int = 3
    arguments: dict[str, Any] = field(default_factory=dict)
    mask_channels: int = 0
    batch: int = 2
    given: tuple[str, ...] = ()

    def __str__(self) -> str:
        options = "-".join(f"{key}={value}" for key, value in self.arguments.items())
        mask = f"-mask{self.mask_channels}" if self.mask_channels else ""
        given = f"-{'+'.join(self.given)}" if self.given else ""
        return f"{self.op}-{self.dims}d-{options or 'default'}{mask}{given}"

    @property
    def names(self) -> tuple[str, ...]:
        """The differentiable tensors that the case gives."""
        return self.given or TENSORS[self.op]

    def shape_of(self, name: str) -> tuple[int, ...]:
        """(B, C, spatial...) of a tensor; two channels for images, one component per axis for fields."""
        return (self.batch, 2 if name in IMAGES else self.dims, *SPATIAL[self.dims])

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
        """The op's tensors, uniform in [0, 1) but for affines, leaves that need a gradient."""
        generator = torch.Generator().manual_seed(seed)
        made = [
            _near_identity(self.batch, self.dims, generator)
            if name == "affine"
            else torch.rand(self.shape_of(name), generator=generator, dtype=torch.float64)
            for name in self.names
        ]
        return [tensor.to(dtype).requires_grad_() for tensor in made]

    def mask(self) -> torch.Tensor | None:
        """A mask of weights, some of them 0."""
        if not self.mask_channels:
            return None
        generator = torch.Generator().manual_seed(99)
        weights = torch.rand(self.batch, self.mask_channels, *SPATIAL[self.dims], generator=generator)
        return weights * (weights > 0.3)

    def run(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The output for the tensors, on their device."""
        mask = self.mask()
        masked = {} if mask is None else {"mask": mask.to(tensors[0].device)}
        arguments = {**REQUIRED.get(self.op, {}), **self.arguments, **masked}
        return FUNCTIONS[self.op](**dict(zip(self.names, tensors, strict=True)), **arguments)

    def scalar(self, *tensors: torch.Tensor) -> torch.Tensor:
        """A loss; of any other output, a weighted sum, to which every voxel contributes."""
        output = self.run(*tensors)
        if output.ndim == 0:
            return output
        weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype, device=output.device)
        return (output * weights.reshape(output.shape)).sum()

    def needs_grad(self, tensors: Any) -> list[bool]:
        """The flag per differentiable tensor of the op that its operator takes."""
        count = len(import_module(f"usreg_kernels.ops.{self.op}").OP.tensors)
        return [tensor is not None and tensor.requires_grad for tensor in tensors[:count]]


def _lncc() -> list[Case]:
    cases = [Case("lncc", dims, {"kernel_type": kind}) for dims in (1, 2, 3) for kind in ("rectangular", "gaussian")]
    cases += [Case("lncc", 3, {"kernel_type": "triangular", "kernel_size": 7, "smooth_nr": 1e-3})]
    cases += [Case("lncc", 3, {"kernel_size": (3, 5, 1), "kernel_type": "gaussian"})]
    cases += [Case("lncc", 3, {"reduction": reduction, "kernel_size": 5}) for reduction in ("sum", "none")]
    cases += [Case("lncc", 3, {"reduction": r}, mask_channels=c) for r in ("mean", "sum", "none") for c in (1, 2)]
    return cases


def _mind() -> list[Case]:
    cases = [Case(op, dims) for op in ("mind", "mind_ssc") for dims in (2, 3)]
    # No window, neighbours of neighbours, and both wider than the axes are long.
    for radius, dilation in ((0, 1), (1, 3), (3, 2), (5, 9)):
        options = {"radius": radius, "dilation": dilation}
        cases += [Case(op, dims, options) for op in ("mind", "mind_ssc") for dims in (2, 3)]
    cases += [Case("mind", dims, {"reduction": reduction}) for reduction in ("sum", "none") for dims in (2, 3)]
    return cases + [Case("mind", 3, {"reduction": r}, mask_channels=c) for r in ("mean", "sum", "none") for c in (1, 2)]


def _fields() -> list[Case]:
    cases = []
    for dims in (1, 2, 3):
        for scheme in ("forward", "central"):
            cases += [Case("gradient_smoothness", dims, {"scheme": scheme, "penalty": p}) for p in ("l1", "l2")]
            spacing = (0.5, 2.0, 3.0)[:dims]
            options = {"scheme": scheme, "spacing": spacing, "normalize": True}
            cases += [Case("gradient_smoothness", dims, {**options, "reduction": r}) for r in ("mean", "sum", "none")]
        cases += [Case("bending_energy", dims, {"reduction": r}) for r in ("mean", "sum", "none")]
        cases += [Case("bending_energy", dims, {"normalize": True})]
    return cases


def _dvf_mse() -> list[Case]:
    cases = [Case("dvf_mse", dims) for dims in (1, 2, 3)]
    return cases + [
        Case("dvf_mse", 3, {"reduction": r}, mask_channels=c) for r in ("mean", "sum", "none") for c in (0, 1, 3)
    ]


def _dvf_supervision() -> list[Case]:
    options = {"mse_weight": 3.0, "smooth_weight": 0.5}
    return [Case("dvf_supervision", dims, {**options, "spacing": (0.5, 2.0, 3.0)[:dims]}) for dims in (1, 2, 3)]


def _warp() -> list[Case]:
    cases = [
        Case("warp", dims, {"mode": mode, "padding_mode": padding_mode})
        for dims in (1, 2, 3)
        for padding_mode in ("border", "zeros", "reflection")
        for mode in ("bilinear", "nearest")
    ]
    for given in (("image", "affine"), ("image", "ddf", "affine")):
        cases += [Case("warp", dims, {"padding_mode": "zeros"}, given=given) for dims in (1, 2, 3)]
        cases += [Case("warp", 3, {"mode": "nearest"}, given=given)]
    return [*cases, Case("warp", 3, {"size": (4, 9, 3)}, given=("image", "affine"))]


def _compose_ddf() -> list[Case]:
    paddings = ("border", "zeros", "reflection")
    return [Case("compose_ddf", dims, {"padding_mode": padding}) for dims in (1, 2, 3) for padding in paddings]


def _integrate_velocity() -> list[Case]:
    cases = [Case("integrate_velocity", dims) for dims in (1, 2, 3)]
    return [*cases, Case("integrate_velocity", 3, {"steps": 2, "padding_mode": "border"})]


def _jacobian() -> list[Case]:
    cases = []
    for dims in (1, 2, 3):
        spacing = (0.5, 2.0, 3.0)[:dims]
        cases += [Case("jacobian_determinant", dims), Case("jacobian_determinant", dims, {"spacing": spacing})]
        cases += [Case("folding", dims, {"margin": 1.0, "reduction": r}) for r in ("mean", "sum", "none")]
        cases += [Case("folding", dims, {"margin": 0.5, "spacing": spacing})]
    return cases


def _gaussian_smooth() -> list[Case]:
    paddings = ("border", "zeros", "reflection")
    cases = [Case("gaussian_smooth", dims, {"padding_mode": padding}) for dims in (1, 2, 3) for padding in paddings]
    # Further than the axes are long, not at all, and in between.
    cases += [Case("gaussian_smooth", 3, {"sigma": (2.0, 0.0, 0.5), "padding_mode": padding}) for padding in paddings]
    return [*cases, Case("gaussian_smooth", 2, {"sigma": 1.3, "truncate": 4.0})]


def _mutual_information() -> list[Case]:
    name, kernels = "mutual_information", ("b-spline", "gaussian")
    cases = [Case(name, dims, {"kernel": kernel}) for dims in (1, 2, 3) for kernel in kernels]
    cases += [Case(name, 2, {"kernel": kernel, "normalized": True, "num_bins": 9}) for kernel in kernels]
    cases += [Case(name, 2, {"kernel": "gaussian", "sigma_ratio": ratio, "num_bins": 23}) for ratio in (0.2, 1.5)]
    cases += [Case(name, 3, {"kernel": kernel, "reduction": r}) for kernel in kernels for r in ("sum", "none")]
    return cases + [
        Case(name, 3, {"kernel": kernel, "normalized": n}, mask_channels=c)
        for kernel in kernels
        for n, c in ((False, 1), (True, 2))
    ]


CASES = [
    *_lncc(),
    *_mind(),
    *_fields(),
    *_dvf_mse(),
    *_dvf_supervision(),
    *_warp(),
    *_compose_ddf(),
    *_integrate_velocity(),
    *_jacobian(),
    *_gaussian_smooth(),
    *_mutual_information(),
]
ONE_CASE_PER_OP = [Case(op) for op in FUNCTIONS]


def interpreted(case: Case) -> Case:
    """The case for Triton's interpreter, which takes as long for an operation on one voxel as on a thousand.

    Four squarings, which a backward pass still goes back over in two parts of unequal length; a small window; and one
    sample, where the kernels are those of a composition, or count samples and channels as one axis.
    """
    if case.op in ("mind", "mind_ssc"):
        return replace(case, batch=1, arguments={"radius": 1, **case.arguments})
    if case.op == "integrate_velocity":
        return replace(case, batch=1, arguments={"steps": 4, **case.arguments})
    return replace(case, batch=1) if case.op == "gaussian_smooth" else case


INTERPRETED_CASE_PER_OP = [interpreted(case) for case in ONE_CASE_PER_OP]


def _takes_long(case: Case) -> bool:
    """Whether Triton's interpreter needs tens of seconds for a case; test_mind_triton.py has the like in small."""
    return case.op in ("mind", "mind_ssc") and case.dims == 3 and case.arguments.get("radius", 1) != 1


def takes(backend: str, dtype: torch.dtype) -> bool:
    """Whether a backend takes tensors of a dtype."""
    return backend != "triton" or dtype != torch.float64


def widest(backend: str) -> torch.dtype:
    """The most precise dtype that a backend takes."""
    return torch.float64 if takes(backend, torch.float64) else torch.float32


def with_backends(cases: list[Case], dtype: torch.dtype = torch.float32) -> list[tuple[Case, str]]:
    """Each case with every backend of its op that this machine can run on CPU tensors of a dtype."""
    on_cpu = ("reference", "cpu", "triton") if INTERPRETED else ("reference", "cpu")
    return [
        (interpreted(case) if backend == "triton" else case, backend)
        for case in cases
        for backend in uk.available_backends(case.op)
        if backend in on_cpu and takes(backend, dtype) and not (backend == "triton" and _takes_long(case))
    ]
