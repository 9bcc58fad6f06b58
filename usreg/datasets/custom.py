"""``custom_dataset``: the user's own pairs of NIfTI volumes, listed in a JSON manifest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from torch.utils.data import Dataset, get_worker_info

from ..errors import DataError
from ..io.images import read_volume
from ..io.landmarks import check_landmarks_space
from ..io.manifest import OPTIONAL, Case, each_case, read_manifest
from ..spatial import Grid
from . import preprocess
from .case_checks import SIDES, at, check_case, world_landmarks
from .utils import Sample, check_image_size, check_split, register_dataset, wrap_index

logger = logging.getLogger(__name__)

_CACHE_BYTES = 2 * 1024**3
_TOLERANCE = 1e-3  # of label values beyond [0, 1]


@register_dataset("custom_dataset")
class CustomDataset(Dataset[Sample]):
    """Pairs of volumes from files; moving and fixed may differ in size, spacing and orientation.

    The manifest is an object with the lists ``train`` and ``val``. A case has ``moving`` and ``fixed`` and, optionally,
    ``moving_label`` and ``fixed_label`` (3-D, or 4-D with one structure per channel, values 0 to 1, on the image's
    grid), ``moving_mask``, ``fixed_mask``, ``moving_landmarks`` and ``fixed_landmarks`` (a list or a file, see
    :func:`usreg.io.read_landmarks`), ``modality`` and any other metadata. Paths are absolute or
    relative to the manifest.

    A sample has, on one grid of ``image_size``, axes z, y, x in the directions of ``orientation``:

    - ``moving``, ``fixed`` (1, D, H, W) float32, in [0, 1] unless ``normalize_intensity`` is false
    - ``moving_label``, ``fixed_label`` (L, D, H, W): the fraction of each voxel inside the structure, from trilinear
      sampling; what exceeds 0.5 is the mask. A case without labels gets one all-zero channel, which counts as absent
    - ``moving_mask``, ``fixed_mask`` (1, D, H, W), 0 or 1; all 1 for a case without
    - ``moving_points``, ``fixed_points`` (N, 3) voxels z, y, x; N is 0 for a case without
    - ``spacing``, ``moving_spacing`` (3,) mm z, y, x of the fixed and of the moving image
    - ``case`` (its ``case`` or ``subject_id``, else its place in the manifest), ``metadata`` (strings)

    A kind of label, mask or landmark that no case of the list has is not in the samples at all.

    Construction checks all headers first, then reads every file once, whole: nothing shorter finds a compressed file
    that is cut short. The price is one pass over the data before training. Samples are kept in memory, up to 2 GiB
    (divided among the workers where they cannot share the parent's), so that later passes read only what did not fit.

    Args:
        json_file: the manifest.
        image_size: [D, H, W] in voxels.
        orientation: directions of the axes x, y, z; for RAS: right, anterior, superior.
        spacing: mm per voxel [z, y, x] to resample to before the resizing; None for none.
        normalize_intensity: scale intensities to [0, 1].
        quantile_range: quantiles of the intensities that become 0 and 1, for all but CT.
        ct_window: intensities in Hounsfield units that become 0 and 1, for CT.
        default_is_ct: whether cases without a ``modality`` are CT. A case with one is CT where it is "CT" in any case.
        landmarks_space: space of landmarks that do not state it: ``lps`` (mm, as ITK has them; so where it is missing),
            ``ras`` (mm, as NIfTI has them) or ``voxel`` (zero-based indices x, y, z of the image file's array). Files
            that state another space than it are an error where it is given.
        split: the manifest's list: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        ValueError: a value is out of its range.
        DataError: the manifest or a file cannot be used; names case, key and path.
    """

    def __init__(
        self,
        json_file: str,
        image_size: tuple[int, int, int],
        orientation: str = "RAS",
        spacing: tuple[float, float, float] | None = None,
        normalize_intensity: bool = True,
        quantile_range: tuple[float, float] = (0.01, 0.99),
        ct_window: tuple[float, float] = (-1000.0, 1000.0),
        default_is_ct: bool = False,
        landmarks_space: str | None = None,
        split: str = "train",
    ) -> None:
        self.image_size = check_image_size(image_size)
        self.orientation = preprocess.check_orientation(orientation)
        self.spacing = _check_spacing(spacing)
        self.normalize_intensity = normalize_intensity
        self.quantile_range = _check_range("quantile_range", quantile_range, 0.0, 1.0)
        self.ct_window = _check_range("ct_window", ct_window, -float("inf"), float("inf"))
        self.default_is_ct = default_is_ct
        self.landmarks_space = check_landmarks_space(landmarks_space)
        self._cache = SampleCache(_CACHE_BYTES)
        json_path = Path(json_file).expanduser()
        self._cases = read_manifest(json_path, check_split(split))
        self._optional_keys = {key for key in OPTIONAL if any(case.has(key) for case in self._cases)}
        each_case(json_path, self._cases, lambda case: check_case(case, self.landmarks_space))
        logger.info("%s: reading and checking the %d cases of '%s'", json_path, len(self._cases), split)
        each_case(json_path, range(len(self._cases)), self._cached)

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Sample:
        sample = self._cached(wrap_index(index, len(self)))
        return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}

    def _cached(self, index: int) -> Sample:
        sample = self._cache.get(index)
        if sample is None:
            sample = self._load(self._cases[index])
            self._cache.put(index, sample)
        return sample

    def _load(self, case: Case) -> Sample:
        sample: Sample = {}
        for side in SIDES:
            with at(case, side):
                volume = read_volume(case.files[side])
                image = self._to_grid(volume)
                sample[side] = _plain(self._scale_intensity(case, side, image))
            sample["spacing" if side == "fixed" else "moving_spacing"] = preprocess.grid_spacing(image)
            self._add_label(sample, case, f"{side}_label")
            self._add_mask(sample, case, f"{side}_mask")
            self._add_points(sample, case, side, volume, image)
        return sample | {"case": case.name, "metadata": dict(case.metadata)}

    def _to_grid(self, volume: MetaTensor) -> MetaTensor:
        return preprocess.to_grid(volume, self.image_size, self.orientation, self.spacing)

    def _scale_intensity(self, case: Case, side: str, image: MetaTensor) -> MetaTensor:
        if not self.normalize_intensity:
            return image
        is_ct = self.default_is_ct if case.modality is None else case.modality.strip().upper() == "CT"
        try:
            if is_ct:
                return preprocess.scale_by_window(image, self.ct_window)
            return preprocess.scale_by_quantiles(image, self.quantile_range)
        except DataError as error:
            raise DataError(f"{case.files[side]}: {error}") from error

    def _overlay(self, case: Case, key: str) -> torch.Tensor:
        """A label or mask on the sample's grid, (L, D, H, W) in [0, 1]."""
        with at(case, key):
            volume = read_volume(case.files[key])
            low, high = float(volume.min()), float(volume.max())
            if low < -_TOLERANCE or high > 1 + _TOLERANCE:
                raise DataError(
                    f"{case.files[key]}: its values go from {low:g} to {high:g}; they must be 0 to 1, "
                    f"with one structure per channel (fourth array axis)"
                )
            return _plain(self._to_grid(volume)).clamp(0, 1)

    def _add_label(self, sample: Sample, case: Case, key: str) -> None:
        if case.has(key):
            sample[key] = self._overlay(case, key)
        elif key in self._optional_keys:
            sample[key] = torch.zeros(1, *self.image_size)

    def _add_mask(self, sample: Sample, case: Case, key: str) -> None:
        if case.has(key):
            sample[key] = (self._overlay(case, key) > 0.5).float()
        elif key in self._optional_keys:
            sample[key] = torch.ones(1, *self.image_size)

    def _add_points(self, sample: Sample, case: Case, side: str, volume: MetaTensor, image: MetaTensor) -> None:
        key = f"{side}_landmarks"
        if case.has(key):
            with at(case, key):
                points = world_landmarks(case, key, _grid(volume), self.landmarks_space)
            sample[f"{side}_points"] = torch.from_numpy(_grid(image).to_voxels(points).astype(np.float32))
        elif key in self._optional_keys:
            sample[f"{side}_points"] = torch.zeros(0, 3)


class SampleCache:
    """Samples by index, up to a number of bytes; what no longer fits is not kept. A pickled cache arrives empty."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._samples: dict[int, Sample] = {}

    def get(self, index: int) -> Sample | None:
        """The sample of this index, None if it is not kept."""
        return self._samples.get(index)

    def put(self, index: int, sample: Sample) -> None:
        """Keep the sample if there is room for it."""
        worker = get_worker_info()
        size = sum(value.nbytes for value in sample.values() if isinstance(value, torch.Tensor))
        if self._used + size <= self._limit // (worker.num_workers if worker else 1):
            self._samples[index] = sample
            self._used += size

    def __reduce__(self) -> tuple[type[SampleCache], tuple[int]]:
        return SampleCache, (self._limit,)  # a spawned worker reads what it needs instead of getting everything sent


def _grid(volume: MetaTensor) -> Grid:
    return Grid((volume.shape[1], volume.shape[2], volume.shape[3]), volume.affine.numpy())


def _plain(volume: MetaTensor) -> torch.Tensor:
    return volume.as_tensor().float().contiguous()


def _check_range(key: str, values: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    if len(values) != 2 or not lowest <= values[0] < values[1] <= highest:
        raise ValueError(f"{key} must be two rising numbers [low, high] from {lowest} to {highest}, not {list(values)}")
    return float(values[0]), float(values[1])


def _check_spacing(spacing: Sequence[float] | None) -> tuple[float, float, float] | None:
    if spacing is None:
        return None
    if len(spacing) != 3 or not all(0 < mm < float("inf") for mm in spacing):
        raise ValueError(f"spacing must be three positive numbers [z, y, x] in mm, not {list(spacing)}")
    return float(spacing[0]), float(spacing[1]), float(spacing[2])
