"""Checks of public arguments: each error says what was given and what is valid, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from usreg_kernels.ops.operator import loss_dtype
from usreg_kernels.ops.reduction import REDUCTIONS, Reduction
from usreg_kernels.windows import KERNEL_TYPES, KernelType

Name = TypeVar("Name", bound=str)

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_choice(name: str, value: object, valid: Sequence[Name]) -> Name:
    """A string out of a few (an enum with such a value counts)."""
    value = getattr(value, "value", value)
    for choice in valid:
        if value == choice:
            return choice
    raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")


def check_reduction(reduction: object) -> Reduction:
    """``none``, ``mean`` or ``sum``."""
    return check_choice("reduction", reduction, REDUCTIONS)


def check_kernel_type(kernel_type: object) -> KernelType:
    """``rectangular``, ``triangular`` or ``gaussian``."""
    return check_choice("kernel_type", kernel_type, KERNEL_TYPES)


def has_entries(value: object) -> bool:
    """Whether a value holds an entry per axis; text, a number and an array without an axis are single values."""
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", None) != 0


def _per_axis(value: Any, spatial_dims: int) -> list[Any]:
    """What belongs to each spatial axis: the entries of a value, or a single value for every axis."""
    return list(value) if has_entries(value) else [value] * spatial_dims


def check_kernel_size(kernel_size: int | Sequence[int], spatial_dims: int) -> list[int]:
    """One odd positive size per spatial axis, from one integer (NumPy's too) or one per axis."""
    sizes = _per_axis(kernel_size, spatial_dims)
    wanted = "kernel_size must be an int or one int per spatial axis"
    if len(sizes) != spatial_dims:
        raise ValueError(f"{wanted} ({spatial_dims}), got {kernel_size!r}")
    for size in sizes:
        if not _is_integer(size):
            raise TypeError(f"{wanted}, got {kernel_size!r}")
        if size < 1 or size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size!r}")
    return [int(size) for size in sizes]


def _to_float(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def check_number(name: str, value: object, least: float = -math.inf) -> float:
    """A finite number, not less than ``least``."""
    number = _to_float(name, value)
    if not abs(number) < math.inf or number < least:
        wanted = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return number


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer, torch.SymInt)) and not isinstance(value, bool)


def check_positive(name: str, value: object) -> float:
    """A finite number above 0."""
    number = _to_float(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    return number


LEAST_BINS = {"b-spline": 6, "gaussian": 2}
"""Bins of a histogram that tell values apart, by the window: a B-spline has two free bins at each end."""


def check_bins(num_bins: int, kernel: str) -> int:
    """The bins of an image's histogram, an integer (NumPy's too), enough for a window."""
    if not _is_integer(num_bins):
        raise TypeError(f"num_bins must be an integer, got {num_bins!r}")
    if num_bins < LEAST_BINS[kernel]:
        raise ValueError(f"num_bins must be at least {LEAST_BINS[kernel]} for kernel={kernel!r}, got {num_bins!r}")
    return int(num_bins)


def check_count(name: str, value: int, least: int = 0, most: int | None = None) -> int:
    """An integer (NumPy's too) of at least ``least`` and, where it is given, at most ``most``."""
    wanted = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
    if not _is_integer(value):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return int(value)


def check_spacing(spacing: float | Sequence[float] | None, spatial_dims: int) -> list[float] | None:
    """One positive number per spatial axis, from one number or one per axis; or None."""
    if spacing is None:
        return None
    values = [_to_float("spacing", value) for value in _per_axis(spacing, spatial_dims)]
    if len(values) != spatial_dims or not all(0 < value < math.inf for value in values):
        raise ValueError(
            f"spacing must be {spatial_dims} positive numbers (mm per voxel, one per axis), or one for all axes, "
            f"got {spacing!r}"
        )
    return values


def check_sigma(sigma: float | Sequence[float], spatial_dims: int) -> list[float]:
    """One standard deviation of at least 0 per spatial axis, from one number or one per axis."""
    values = [_to_float("sigma", value) for value in _per_axis(sigma, spatial_dims)]
    if len(values) != spatial_dims or not all(0 <= value < math.inf for value in values):
        raise ValueError(
            f"sigma must be {spatial_dims} finite numbers of at least 0 (voxels, one per axis), or one for all axes, "
            f"got {sigma!r}"
        )
    return values


def _describe(tensor: torch.Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}"


def check_floating(name: str, tensor: torch.Tensor) -> None:
    """A tensor of one of the four supported dtypes."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}; convert it with .float()"
        )


def check_pair(first_name: str, first: torch.Tensor, second_name: str, second: torch.Tensor) -> int:
    """Two tensors (B, C, spatial...) of one shape, dtype and device; returns the number of spatial dimensions."""
    check_floating(first_name, first)
    check_floating(second_name, second)
    same = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
    if not same:
        raise ValueError(
            f"{first_name} and {second_name} must have one shape, dtype and device, got "
            f"{first_name}: {_describe(first)}; {second_name}: {_describe(second)}"
        )
    return check_spatial(first_name, first)


def check_spatial(name: str, tensor: torch.Tensor) -> int:
    """(B, C, spatial...) with one, two or three spatial dimensions; returns their number."""
    if tensor.ndim not in (3, 4, 5):
        raise ValueError(
            f"{name} must have shape (B, C, spatial...) with 1, 2 or 3 spatial dimensions, got {tuple(tensor.shape)}"
        )
    return tensor.ndim - 2


def check_mind(name: str, dims: int, image: torch.Tensor) -> None:
    """An image of two or three spatial dimensions, whose voxels have neighbours along different axes."""
    if dims == 1:
        raise ValueError(
            f"MIND-SSC compares neighbours along two different axes: {name} must have shape (B, C, H, W) or "
            f"(B, C, D, H, W), got {tuple(image.shape)}"
        )


def check_field(name: str, dvf: torch.Tensor, smallest: int = 0) -> int:
    """A displacement field (B, n, spatial...) with n components for n axes of at least ``smallest`` voxels."""
    check_floating(name, dvf)
    dims = check_spatial(name, dvf)
    if dvf.shape[1] != dims:
        raise ValueError(
            f"{name} must have one component per spatial axis: shape (B, {dims}, spatial...), got {tuple(dvf.shape)}"
        )
    if any(size < smallest for size in dvf.shape[2:]):
        raise ValueError(
            f"{name} must have at least {smallest} voxels along every spatial axis for these differences, "
            f"got {tuple(dvf.shape)}"
        )
    return dims


def check_mask(mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """A mask (B, 1 or C, spatial...) on the images' device, as weights in the dtype of the loss."""
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
    valid = mask.ndim == like.ndim and mask.shape[0] == like.shape[0] and mask.shape[2:] == like.shape[2:]
    if not valid or mask.shape[1] not in (1, like.shape[1]) or mask.device != like.device or mask.is_complex():
        raise ValueError(
            f"mask must be real, of shape (B, 1 or C, spatial...) = ({like.shape[0]}, 1 or {like.shape[1]}, "
            f"{', '.join(map(str, like.shape[2:]))}) on {like.device}, got {_describe(mask)}"
        )
    if mask.requires_grad:
        raise ValueError("mask gets no gradient; pass mask.detach()")
    return mask.to(loss_dtype(like.dtype))


def check_fits(
    name: str, tensor: torch.Tensor, shape: Sequence[int], wanted: str, other_name: str, other: torch.Tensor
) -> None:
    """A tensor of the shape and on the device that another one asks for; ``wanted`` describes the shape."""
    if tuple(tensor.shape) != tuple(shape) or tensor.device != other.device:
        raise ValueError(
            f"{name} must have {wanted} = {tuple(shape)} on {other.device}, to fit {other_name}: {_describe(other)}; "
            f"got {_describe(tensor)}"
        )


def check_affine(affine: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """An affine (B, n, n + 1) or (n, n + 1) for an image (B, C, spatial...); returns the former."""
    check_floating("affine", affine)
    dims = image.ndim - 2
    if (affine.ndim == 3 and affine.shape[-2:] == (dims + 1, dims + 1)) or affine.shape == (dims + 1, dims + 1):
        raise ValueError(
            f"affine must have shape ({image.shape[0]}, {dims}, {dims + 1}) or ({dims}, {dims + 1}), got "
            f"{tuple(affine.shape)}; leave out the last row of a homogeneous matrix: affine[..., :{dims}, :]"
        )
    batched = affine.expand(image.shape[0], -1, -1) if affine.ndim == 2 else affine
    check_fits("affine", batched, (image.shape[0], dims, dims + 1), "shape (B, n, n + 1)", "image", image)
    return batched


def check_size(size: Sequence[int], dims: int, needed: Sequence[int] | None) -> list[int]:
    """The spatial size of an output: one integer per axis, none negative, and what a field asks for if there is one."""
    sizes = list(size) if has_entries(size) else []
    if len(sizes) != dims or not all(_is_integer(length) and length >= 0 for length in sizes):
        raise ValueError(f"size must be {dims} integers of at least 0, one per spatial axis, got {size!r}")
    if needed is not None and sizes != list(needed):
        raise ValueError(f"size must be that of the ddf where there is one, {tuple(needed)}, got {size!r}")
    return [length if isinstance(length, torch.SymInt) else int(length) for length in sizes]
