"""The operations on images and displacement fields as functions: what they mean, and the checks of their arguments.

Shapes are (B, C, D, H, W), or fewer spatial axes; axes and vector components are in the order z, y, x. Coordinates are
voxel indices: the centre of the first voxel is 0, that of the last size - 1 (``align_corners=True`` in PyTorch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch

from usreg_kernels import checks
from usreg_kernels.ops.compose_ddf import OP as COMPOSE_DDF
from usreg_kernels.ops.gaussian_smooth import OP as GAUSSIAN_SMOOTH
from usreg_kernels.ops.gaussian_smooth.weights import LARGEST_RADIUS
from usreg_kernels.ops.integrate_velocity import OP as INTEGRATE_VELOCITY
from usreg_kernels.ops.jacobian_determinant import OP as JACOBIAN_DETERMINANT
from usreg_kernels.ops.mind_ssc import OP as MIND_SSC
from usreg_kernels.ops.mind_ssc.pairs import LARGEST_RADIUS as LARGEST_MIND
from usreg_kernels.ops.operator import loss_dtype
from usreg_kernels.ops.warp import OP as WARP

Interpolation = Literal["bilinear", "nearest"]
PaddingMode = Literal["border", "zeros", "reflection"]

INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)


def warp(
    image: torch.Tensor,
    ddf: torch.Tensor | None = None,
    *,
    affine: torch.Tensor | None = None,
    size: Sequence[int] | None = None,
    mode: Interpolation = "bilinear",
    padding_mode: PaddingMode = "border",
) -> torch.Tensor:
    """Pull an image through a displacement field, an affine, or both: ``warped(x) = image(affine(x) + ddf(x))``.

    A field of +2 everywhere in its first component shows, at each voxel, what lies two voxels further along the first
    axis. Equal to ``torch.nn.functional.grid_sample`` with ``align_corners=True`` on the same coordinates, without a
    tensor of coordinates.

    Args:
        image: (B, C, spatial...) with n = 1, 2 or 3 spatial dimensions of at least one voxel; any number of channels.
        ddf: (B, n, output...), displacements in voxels of ``image``. Its spatial size is the output's.
        affine: (B, n, n + 1) or (n, n + 1), from voxels of the output to voxels of ``image``: a matrix and, in the last
            column, an offset. The identity where it is missing.
        size: the spatial size of the output of an affine without a field; that of ``image`` where it is missing.
        mode: ``"bilinear"`` (linear along each of the n axes), or ``"nearest"``, with no gradient to field and affine.
        padding_mode: what lies outside the image: ``"border"`` repeats its edge, ``"zeros"``, or ``"reflection"`` about
            the centres of the first and the last voxel.

    Returns:
        (B, C, output...): float64 where an input is float64, else float32, also for half precision. NaN where a
        coordinate is NaN or infinite. Coordinates are float32 at least, whatever the dtypes and under autocast. The
        gradient of the image has the same bits on every run. Where a coordinate is not finite, the gradient of the
        field is NaN and the image gets none.

    Raises:
        TypeError: an input is not a floating-point tensor. Convert labels with ``.float()``.
        ValueError: shapes or devices do not fit; neither field nor affine; an unknown name; an image without voxels.
    """
    checks.check_floating("image", image)
    dims = checks.check_spatial("image", image)
    if 0 in image.shape[2:]:
        raise ValueError(f"image must have at least one voxel along every spatial axis, got {tuple(image.shape)}")
    if ddf is None and affine is None:
        raise ValueError("warp needs a ddf, an affine, or both; got neither")
    output = list(image.shape[2:])
    if ddf is not None:
        checks.check_field("ddf", ddf)
        checks.check_fits("ddf", ddf, (image.shape[0], dims, *ddf.shape[2:]), "(B, n, output...)", "image", image)
        output = list(ddf.shape[2:])
    if affine is not None:
        affine = checks.check_affine(affine, image)
    if size is not None:
        output = checks.check_size(size, dims, None if ddf is None else output)
    dtype = _common_dtype(image, ddf, affine)
    return WARP(
        image.to(dtype),
        None if ddf is None else ddf.to(dtype),
        None if affine is None else affine.to(loss_dtype(dtype)),
        size=output,
        mode=checks.check_choice("mode", mode, INTERPOLATIONS),
        padding_mode=checks.check_choice("padding_mode", padding_mode, PADDING_MODES),
    )


def compose_ddf(outer: torch.Tensor, inner: torch.Tensor, *, padding_mode: PaddingMode = "border") -> torch.Tensor:
    """The field of two warps in a row: ``inner(x) + outer(x + inner(x))``, as pull-back fields.

    ``warp(image, compose_ddf(outer, inner))`` shows what ``warp(warp(image, outer), inner)`` does, with one
    interpolation of the image.

    Args:
        outer: (B, n, spatial...) with n spatial axes, displacements in voxels, of the warp that comes first.
        inner: of the warp that comes second; same shape and device.
        padding_mode: what lies outside ``outer``: as for :func:`warp`.

    Returns:
        (B, n, spatial...): float64 where an input is float64, else float32. NaN where ``inner`` is NaN or infinite.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: shapes or devices differ; wrong number of components; an unknown name; fields without voxels.
    """
    checks.check_field("outer", outer, smallest=1)
    checks.check_field("inner", inner)
    checks.check_fits("inner", inner, tuple(outer.shape), "the shape of outer", "outer", outer)
    dtype = _common_dtype(outer, inner)
    padding_mode = checks.check_choice("padding_mode", padding_mode, PADDING_MODES)
    return COMPOSE_DDF(outer.to(dtype), inner.to(dtype), padding_mode=padding_mode)


def integrate_velocity(velocity: torch.Tensor, *, steps: int = 7, padding_mode: PaddingMode = "zeros") -> torch.Tensor:
    """The displacement of points that a stationary velocity field carries along for one unit of time.

    Scaling and squaring: the field of a short time, ``velocity / 2**steps``, is composed with itself ``steps`` times.
    The field of ``-velocity`` is its inverse, up to discretisation. Equal to MONAI's ``DVF2DDF``.

    Source: Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006.

    Args:
        velocity: (B, n, spatial...) with n spatial axes, in voxels per unit of time.
        steps: how often the field is squared; 0 returns the velocity as a displacement.
        padding_mode: the velocity outside the grid, as for :func:`warp`. ``"zeros"`` is MONAI's default.

    Returns:
        (B, n, spatial...), in voxels: float64 for float64, else float32. Backward computes the fields in between again,
        and holds at most three of them.

    Raises:
        TypeError: the velocity is not a floating-point tensor, or ``steps`` not an integer.
        ValueError: wrong number of components; negative ``steps``; an unknown name; a field without voxels.
    """
    checks.check_field("velocity", velocity, smallest=1)
    padding_mode = checks.check_choice("padding_mode", padding_mode, PADDING_MODES)
    return INTEGRATE_VELOCITY(velocity, steps=checks.check_count("steps", steps), padding_mode=padding_mode)


def jacobian_determinant(ddf: torch.Tensor, *, spacing: float | Sequence[float] | None = None) -> torch.Tensor:
    """The determinant of the Jacobian of ``x + ddf(x)`` at every voxel: how much the map changes a small volume.

    1 where nothing changes, above 1 where the map expands, 0 or less where it folds. Derivatives are those of
    ``torch.gradient``: central differences inside, one-sided differences at the borders. An axis of one voxel has the
    derivative 0.

    Args:
        ddf: (B, n, spatial...) with n = 1, 2 or 3 spatial axes, displacements in voxels, or in mm with ``spacing``.
        spacing: mm per voxel, a positive number for all axes or one per axis (z, y, x), for a field in mm: divides the
            derivatives along an axis. Leave it out for a field in voxels, whose determinant does not depend on it.

    Returns:
        (B, 1, spatial...), without unit, of any sign: float64 where the field is float64, else float32. A NaN spoils
        only the voxels whose differences take it in.

    Raises:
        TypeError: the field is not a floating-point tensor.
        ValueError: wrong number of components, a bad spacing.
    """
    dims = checks.check_field("ddf", ddf)
    return JACOBIAN_DETERMINANT(ddf, spacing=checks.check_spacing(spacing, dims))


def gaussian_smooth(
    x: torch.Tensor,
    sigma: float | Sequence[float],
    *,
    truncate: float = 3.0,
    padding_mode: PaddingMode = "border",
) -> torch.Tensor:
    """Smooth images or fields with a gaussian, each channel by itself.

    Along each axis, a weighted mean with the weights ``exp(-k^2 / (2 sigma^2))`` for ``|k| <= radius``, which add up to
    1; ``radius = int(truncate * sigma + 0.5)``. Equal to ``scipy.ndimage.gaussian_filter`` with the same sigma and
    truncate, and its modes ``nearest``, ``constant`` and ``mirror`` in the order of ``padding_mode`` below.

    Args:
        x: (B, C, spatial...) with 1, 2 or 3 spatial dimensions; any number of channels, any value range.
        sigma: the standard deviation in voxels, at least 0: one for all axes, or one per axis (z, y, x). 0 leaves an
            axis as it is.
        truncate: how many standard deviations the filter reaches to either side, at least 0.
        padding_mode: what lies outside: ``"border"`` repeats the edge, ``"zeros"``, or ``"reflection"`` about the
            centres of the first and the last voxel.

    Returns:
        (B, C, spatial...): float64 where ``x`` is, else float32, also for half precision. NaN and infinity spread
        as far as the filter reaches. Result and gradient have the same bits on every run.

    Raises:
        TypeError: ``x`` is not a floating-point tensor; sigma or truncate is not a number.
        ValueError: wrong number of dimensions or sigmas; a negative or infinite one; an unknown name; a radius above
            4,096 voxels.
    """
    checks.check_floating("x", x)
    dims = checks.check_spatial("x", x)
    sigmas = checks.check_sigma(sigma, dims)
    truncate = checks.check_number("truncate", truncate, least=0.0)
    for width in sigmas:
        if truncate * width > LARGEST_RADIUS:
            raise ValueError(
                f"truncate * sigma must be at most {LARGEST_RADIUS} voxels, got {truncate:g} * {width:g}; "
                "smooth a smaller grid"
            )
    return GAUSSIAN_SMOOTH(
        x,
        sigma=sigmas,
        truncate=truncate,
        padding_mode=checks.check_choice("padding_mode", padding_mode, PADDING_MODES),
    )


def mind_ssc(image: torch.Tensor, *, radius: int = 2, dilation: int = 2) -> torch.Tensor:
    """The descriptor MIND-SSC of an image: how alike the neighbours of each voxel are, whatever the brightness.

    Each channel compares two of the neighbours that lie ``dilation`` voxels from a voxel along different axes: of six
    neighbours in 3-D 12 pairs, of four in 2-D 4. With ``D_k`` the mean over a window of the squared difference of the
    pair's values, ``E_k = D_k - min_k D_k`` and ``V = mean_k E_k``, a channel is ``exp(-E_k / V)``. V is limited to
    [1e-3, 1e3] times its mean over the image; the limits are constants for the gradient. The image, and the squared
    differences, are repeated at the border.

    Source: Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using
    self-similarities", MICCAI 2013.

    Args:
        image: (B, C, spatial...) with 2 or 3 spatial dimensions; any value range. Each of its channels is an image of
            its own.
        radius: of the window in voxels, 0 to 32: it has 2 radius + 1 voxels along each axis.
        dilation: how far the neighbours lie, in voxels, 1 to 32.

    Returns:
        (B, 12 C, spatial...) in 3-D, (B, 4 C, spatial...) in 2-D, from 0 to 1 and 1 in one channel at least: float64
        where the image is, else float32, also for half precision. First the channels of the image's first channel.
        All 1 where an image is constant; all NaN where it holds a value that is not finite.

    Raises:
        TypeError: the image is not a floating-point tensor; ``radius`` or ``dilation`` is no integer.
        ValueError: one spatial dimension; a radius or dilation out of its range.
    """
    checks.check_floating("image", image)
    checks.check_mind("image", checks.check_spatial("image", image), image)
    return MIND_SSC(
        image,
        radius=checks.check_count("radius", radius, most=LARGEST_MIND),
        dilation=checks.check_count("dilation", dilation, least=1, most=LARGEST_MIND),
    )


def _common_dtype(first: torch.Tensor, *others: torch.Tensor | None) -> torch.dtype:
    """The dtype that kernels get: the inputs' own if they agree; else float64 if one is float64, else float32."""
    dtypes = {tensor.dtype for tensor in (first, *others) if tensor is not None}
    if len(dtypes) == 1:
        return first.dtype
    return torch.float64 if torch.float64 in dtypes else torch.float32


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    WARP.name: warp,
    COMPOSE_DDF.name: compose_ddf,
    INTEGRATE_VELOCITY.name: integrate_velocity,
    JACOBIAN_DETERMINANT.name: jacobian_determinant,
    GAUSSIAN_SMOOTH.name: gaussian_smooth,
    MIND_SSC.name: mind_ssc,
}
"""The function of each op, by the op's name."""
