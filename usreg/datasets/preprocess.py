"""From a file's voxels to the sample's grid: orientation, spacing, size and intensity. Deterministic throughout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.transforms.spatial.array import Orientation, Resize, Spacing
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..errors import DataError

_FLAT = 1e-2  # an image whose intensities in [0, 1] span less holds next to nothing
_DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))  # of the axes of NIfTI's world, from low to high


def check_orientation(orientation: str) -> str:
    """Return the code in upper case, or raise a ValueError: one letter of each of L/R, A/P and I/S."""
    code = orientation.upper()
    if len(code) != 3 or not all(set(pair) & set(code) for pair in _DIRECTIONS):
        raise ValueError(f"orientation must be three letters, one of L/R, one of A/P, one of I/S, not {orientation!r}")
    return code


def to_grid(
    volume: MetaTensor, image_size: tuple[int, int, int], orientation: str, spacing: Sequence[float] | None
) -> MetaTensor:
    """Bring a volume into the sample's directions and size; the affine follows every step.

    The x, y and z axis of the sample point in the directions of ``orientation``, and its array runs z, y, x: for RAS
    the array's first axis goes to superior, the second to anterior, the third to the patient's right. The whole field
    of view becomes ``image_size`` voxels, so that spacings may differ between axes and between moving and fixed.
    Sampling is trilinear, after a Gaussian against aliasing where it makes an axis coarser.

    Args:
        volume: (C, X, Y, Z) on the file's axes, with the file's affine.
        image_size: (D, H, W) in voxels.
        orientation: directions of the axes x, y, z.
        spacing: mm per voxel z, y, x to resample to before the resizing, None for none.

    Returns:
        (C, D, H, W) float32; its affine (4, 4) takes indices (d, h, w) to mm.
    """
    volume = _meta(Orientation(axcodes=orientation[::-1], labels=_DIRECTIONS)(volume))
    if spacing is not None:
        factors = np.asarray(spacing) / affine_to_spacing(volume.affine).numpy()
        resample = Spacing(pixdim=spacing, mode="bilinear", padding_mode="border", align_corners=False)
        volume = _meta(resample(_against_aliasing(volume, factors)))
    factors = np.asarray(volume.shape[1:]) / np.asarray(image_size)
    return _meta(Resize(image_size, mode="trilinear")(_against_aliasing(volume, factors)))


def _meta(volume: object) -> MetaTensor:
    """What a MONAI transform of a MetaTensor returns, by its real type: MONAI declares less."""
    return cast(MetaTensor, volume)


def _against_aliasing(volume: MetaTensor, factors: NDArray[np.float64]) -> MetaTensor:
    """Smooth the axes that a resampling makes coarser by ``factors``, with the usual sigma (factor - 1) / 2 voxels."""
    sigma = np.maximum(0, (factors - 1) / 2)
    if not sigma.any():
        return volume
    smoothed = gaussian_filter(volume.numpy(), sigma=(0, *sigma), mode="nearest")
    return MetaTensor(torch.from_numpy(smoothed), affine=volume.affine)


def grid_spacing(volume: MetaTensor) -> torch.Tensor:
    """mm per voxel z, y, x of a volume on the sample's grid: (3,) float32."""
    return torch.as_tensor(affine_to_spacing(volume.affine), dtype=torch.float32)


def scale_by_quantiles(image: MetaTensor, quantile_range: Sequence[float]) -> MetaTensor:
    """Map the two quantiles of the intensities to 0 and 1 and clip; the whole range where both quantiles are one value.

    Raises:
        DataError: all voxels have the same value.
    """
    low, high = np.quantile(image.numpy(), quantile_range)
    if low == high:  # nearly everything is background
        low, high = float(image.min()), float(image.max())
    if low == high:
        raise DataError(f"all voxels have the value {low:g}: there is nothing to register")
    return _meta(ScaleIntensityRange(low, high, b_min=0.0, b_max=1.0, clip=True)(image))


def scale_by_window(image: MetaTensor, window: Sequence[float]) -> MetaTensor:
    """Map a window of intensities (low, high), for CT in Hounsfield units, to 0 and 1 and clip.

    Raises:
        DataError: the window leaves no contrast.
    """
    scaled = _meta(ScaleIntensityRange(window[0], window[1], b_min=0.0, b_max=1.0, clip=True)(image))
    if float(scaled.max() - scaled.min()) < _FLAT:
        raise DataError(
            f"the intensities, {float(image.min()):g} to {float(image.max()):g}, have no contrast in the CT window "
            f"{list(window)}; Hounsfield units are needed, or another ct_window, or another modality than CT"
        )
    return scaled
