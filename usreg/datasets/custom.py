"""``custom_dataset``: the user's own pairs of volumes, listed in a manifest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import DataError
from ..io.landmarks import check_landmarks_space
from ..io.manifest import MASKS, OPTIONAL, Case, each_case, read_manifest
from ..io.nifti_world import HeaderChoice
from ..spatial import Grid
from . import custom_options as options
from .case_checks import check_case, check_slices, world_landmarks
from .case_files import SIDES, CaseFiles, at
from .disk_cache import DiskCache, Prepared
from .intensities import IntensityRule, note_shared_modality
from .labels import LabelMap, load_labels, load_mask
from .reading import NanRule, Reading, valid_on_grid
from .sample_cache import SampleCache
from .sample_grids import GridRule, boxes_apart, describe_boxes, image_on, inside, overlay_on
from .utils import Sample, check_image_size, check_split, register_dataset, wrap_index

logger = logging.getLogger(__name__)

_CACHE_BYTES = 2 * 1024**3


@register_dataset("custom_dataset")
class CustomDataset(Dataset[Sample]):
    """Pairs of volumes from files; moving and fixed may differ in size, spacing and orientation.

    The manifest is an object with the lists ``train`` and ``val``. A case has ``moving`` and ``fixed`` and, optionally,
    ``moving_label`` and ``fixed_label`` (a map of the whole numbers 0 to N, a mask, or 4-D with one structure per
    channel, values 0 to 1 or 0 and 255), ``moving_mask``, ``fixed_mask`` (above 0 is inside), ``moving_landmarks`` and
    ``fixed_landmarks`` (a list or a file, see :func:`usreg.io.read_landmarks`), ``modality`` or
    ``moving_modality`` and ``fixed_modality``, and any other metadata. Paths are absolute or relative to the manifest.
    Every volume lies where its own header puts it.

    The two images of a sample have ``image_size`` voxels, axes z, y, x in the directions of ``orientation``. With
    ``align_shared_grid`` both lie on one grid in the world; without it each image has a grid of its own: the box of its
    file, cut into ``image_size`` voxels or into voxels of ``spacing``.

    A sample has

    - ``moving``, ``fixed`` (C, D, H, W) float32, in [0, 1] unless ``normalize_intensity`` is false; C is 1 without
      ``image_channels``
    - ``moving_label``, ``fixed_label`` (L, D, H, W), one channel per structure: 0 and 1, of the nearest voxel, for maps
      and on a shared grid; else the fraction of each voxel inside the structure, from trilinear sampling. What exceeds
      0.5 is the mask. A case without labels gets one all-zero channel, which counts as absent
    - ``moving_label_lost`` (L,) bool: which structures of the moving label's file have no voxel in the sample
    - ``moving_mask``, ``fixed_mask`` (1, D, H, W), 0 or 1, 0 outside the file; a case without has 1 inside
    - ``moving_points``, ``fixed_points`` (N, 3) voxels z, y, x; N is 0 for a case without
    - ``affine``, ``moving_affine`` (4, 4): from voxels z, y, x of the fixed and of the moving image to mm in the world,
      RAS, and ``spacing``, ``moving_spacing`` (3,) mm z, y, x
    - ``case`` (its ``case`` or ``subject_id``, else its place in the manifest), ``metadata`` (strings)

    A kind of label, mask or landmark that no case of the list has is not in the samples at all.

    Construction checks all headers first, then reads every file once, whole: nothing shorter finds a compressed file
    that is cut short. The price is one pass over the data before training. Samples are kept in memory, up to 2 GiB
    (divided among the workers where they cannot share the parent's), so that later passes read only what did not fit.
    With ``cache_dir`` they are also kept on disk, which serves later runs: only what changed since is read.

    Args:
        json_file: the manifest.
        image_size: [D, H, W] in voxels; [1, H, W] for slices, which all images must then be, across the axis that this
            is in ``orientation``.
        orientation: directions of the axes x, y, z; for RAS: right, anterior, superior.
        spacing: mm per voxel [z, y, x]; ``image_size`` voxels of it around the middle of the box crop or pad it. None
            stretches the box to ``image_size``.
        align_shared_grid: one grid in the world for all volumes of a case, in place of one per image.
        align_reference: the key of the volume whose foreground is the box of that grid; foreground is what is above
            0 in labels and masks, above the minimum in images.
        align_margin_mm: margin around it, as far as the image of the reference reaches.
        normalize_intensity: scale intensities to [0, 1].
        quantile_range: quantiles of the intensities that become 0 and 1, for all but CT.
        ct_window: intensities in Hounsfield units that become 0 and 1, for CT.
        default_is_ct: whether images without a modality are CT. One with a modality is CT where that has "ct" in it.
        landmarks_space: space of landmarks that do not state it: ``lps`` (mm, as ITK has them; so where it is missing),
            ``ras`` (mm, as NIfTI has them) or ``voxel`` (zero-based indices x, y, z of the image file's array). Files
            that state another space than it are an error where it is given.
        labels: the values of maps that become channels, in this order; None: 1, 2, ... up to the largest of the case.
        header: which form of a NIfTI header to take where both are set and differ, or where neither is: ``sform`` or
            ``qform``. None takes the sform if it is set, else the qform, and warns.
        nan: what NaN in a volume is: ``error``; ``fill``, background: the lowest value of an image, 0 of a label or
            mask; or ``mask``, background that ``moving_mask`` and ``fixed_mask``, then in every sample, leave out.
        cache_dir: folder of prepared samples, see :class:`usreg.datasets.disk_cache.DiskCache`; None for none.
        image_channels: of the files of the images, whose fourth axis they are. Each channel is scaled by itself.
        preprocess_style: ``multigradicon``, the only one: what is described here.
        roi_from_labels, roi_margin, roi_reference, intensity_lower, intensity_upper, intensity_clip: of older files;
            they do nothing, which the log says once.
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
        align_shared_grid: bool = False,
        align_reference: str = "fixed_label",
        align_margin_mm: float = 6.0,
        normalize_intensity: bool = True,
        quantile_range: tuple[float, float] = (0.01, 0.99),
        ct_window: tuple[float, float] = (-1000.0, 1000.0),
        default_is_ct: bool = False,
        landmarks_space: str | None = None,
        labels: Sequence[int] | None = None,
        header: HeaderChoice | None = None,
        nan: NanRule = "error",
        cache_dir: str | None = None,
        preprocess_style: str = "multigradicon",
        split: str = "train",
        *,
        image_channels: int = 1,
        roi_from_labels: Any = None,
        roi_margin: Any = None,
        roi_reference: Any = None,
        intensity_lower: Any = None,
        intensity_upper: Any = None,
        intensity_clip: Any = None,
    ) -> None:
        self.image_size = check_image_size(image_size)
        self.image_channels = options.check_image_channels(image_channels)
        options.check_preprocess_style(preprocess_style)
        options.check_alignment(align_reference, align_margin_mm)
        options.note_ignored(
            {
                "roi_from_labels": roi_from_labels,
                "roi_margin": roi_margin,
                "roi_reference": roi_reference,
                "intensity_lower": intensity_lower,
                "intensity_upper": intensity_upper,
                "intensity_clip": intensity_clip,
            }
        )
        self.shared = align_shared_grid
        if self.shared and 1 in self.image_size:
            raise ValueError(
                f"align_shared_grid needs volumes, and image_size {list(self.image_size)} is that of slices, which lie "
                "in planes of their own; leave align_shared_grid out"
            )
        self.grid_rule = GridRule(
            self.image_size,
            options.check_orientation(orientation),
            options.check_spacing(spacing),
            align_reference if align_shared_grid else None,
            align_margin_mm,
        )
        self.intensity_rule = None
        quantiles = options.check_range("quantile_range", quantile_range, 0.0, 1.0)
        window = options.check_range("ct_window", ct_window, -float("inf"), float("inf"))
        if normalize_intensity:
            self.intensity_rule = IntensityRule(quantiles, window, default_is_ct)
        self.landmarks_space = check_landmarks_space(landmarks_space)
        self.labels = options.check_labels(labels)
        self.reading = Reading(header, nan)
        self._cache = SampleCache(_CACHE_BYTES)
        self._said: set[str] = set()
        self._disk: DiskCache | None = None
        self._prepare(Path(json_file).expanduser(), check_split(split), cache_dir)

    def _prepare(self, json_path: Path, split: str, cache_dir: str | None) -> None:
        """Check all headers, then read every file once that the cache does not have."""
        self._cases = read_manifest(json_path, split)
        self._optional_keys = {key for key in OPTIONAL if any(case.has(key) for case in self._cases)}
        if self.reading.nan == "mask":
            self._optional_keys |= {*MASKS}
        each_case(json_path, self._cases, self._check)
        self.reading.note_doubts(self._cases)
        each_case(json_path, self._cases, self._check_place)
        if not self.shared:
            self._note_boxes(split)
        if self.intensity_rule is not None:
            note_shared_modality(self._cases)
        if cache_dir is not None:
            rules = (self.grid_rule, self.intensity_rule, self.reading, self.landmarks_space, self.labels, self.shared)
            self._disk = DiskCache(Path(cache_dir).expanduser(), (*rules, sorted(self._optional_keys)))
        logger.info("%s: reading and checking the %d cases of '%s'", json_path, len(self._cases), split)
        each_case(json_path, range(len(self._cases)), self._cached)

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Sample:
        sample = self._cached(wrap_index(index, len(self)))
        return {key: _own(value) for key, value in sample.items()}

    def _cached(self, index: int) -> Sample:
        sample = self._cache.get(index)
        if sample is None:
            case = self._cases[index]
            prepared = self._load(case) if self._disk is None else self._disk.get_or(case, self._load)
            for remark in prepared.remarks:
                self._say(remark)
            sample = prepared.sample | {"case": case.name, "metadata": dict(case.metadata)}
            self._cache.put(index, sample)
        return sample

    def _check(self, case: Case) -> None:
        for doubt in check_case(case, self.landmarks_space, self.reading, self.image_channels):
            logger.warning("%s", doubt)
        check_slices(case, self.reading, self.image_size, self.grid_rule.orientation)

    def _check_place(self, case: Case) -> None:
        """Raise a DataError where one world is asked for, and the files of a case are in two."""
        moving, fixed = (CaseFiles(case, self.reading).grid(side) for side in SIDES)
        if self.shared and not fixed.overlap(moving):
            raise DataError(
                f"{case.where}: by their headers, moving and fixed do not overlap, "
                f"{boxes_apart(moving, fixed, self.grid_rule.orientation)}; align_shared_grid needs headers in one "
                "world"
            )

    def _note_boxes(self, split: str) -> None:
        apart = []
        for case in self._cases:
            moving, fixed = (CaseFiles(case, self.reading).grid(side) for side in SIDES)
            if words := boxes_apart(moving, fixed, self.grid_rule.orientation):
                apart.append((case, words))
        if apart:
            spaced = self.grid_rule.spacing is not None
            logger.warning("%s", describe_boxes(split, apart, len(self._cases), spaced))

    def _load(self, case: Case) -> Prepared:
        sample: Sample = {}
        files = CaseFiles(case, self.reading, keep=self.grid_rule.reference)
        grids = self.grid_rule.grids(files)
        for side, grid in grids.items():
            self._add_image(sample, files, side, grid)
            prefix = "" if side == "fixed" else "moving_"
            sample[f"{prefix}affine"] = torch.from_numpy(grid.affine.astype(np.float32))
            sample[f"{prefix}spacing"] = torch.from_numpy(grid.spacing.astype(np.float32))
            self._add_mask(sample, files, side, grid)
            self._add_points(sample, files, side, grid)
        return Prepared(sample, self._add_labels(sample, files, grids))

    def _add_image(self, sample: Sample, files: CaseFiles, side: str, grid: Grid) -> None:
        volume, source = files.volume(side)
        image = image_on(volume, source, grid, pad=not self.shared)
        if self.intensity_rule is not None:
            with at(files.case, side):
                image = self.intensity_rule.scaled(image, files.case, side, inside(source, grid))
        sample[side] = image

    def _add_labels(self, sample: Sample, files: CaseFiles, grids: Mapping[str, Grid]) -> Sequence[str]:
        """Add both labels; what is to be said of them."""
        keys = [f"{side}_label" for side in grids]
        if all(map(files.case.has, keys)):
            found = load_labels(files, grids, self.labels, nearest=self.shared)
            sample |= found.by_key
            sample["moving_label_lost"] = found.lost["moving_label"]
            return found.warnings
        if not self._optional_keys.isdisjoint(keys):
            sample |= {key: torch.zeros(1, *self.image_size) for key in keys}
            sample["moving_label_lost"] = torch.zeros(1, dtype=torch.bool)
        return ()

    def _say(self, remark: str) -> None:
        """Warn once of what is found in the voxels: a case whose sample is not kept is read again and again."""
        if remark not in self._said:
            self._said.add(remark)
            logger.warning("%s", remark)

    def _add_mask(self, sample: Sample, files: CaseFiles, side: str, grid: Grid) -> None:
        key = f"{side}_mask"
        if files.case.has(key):
            sample[key] = load_mask(files, key, grid, nearest=self.shared)
        elif key in self._optional_keys:
            there = inside(files.grid(side), grid)
            sample[key] = torch.ones(1, *self.image_size) if there is None else there[None].float()
        valid = files.valid(side)
        if valid is not None and self.reading.nan == "mask":
            sample[key] = sample[key] * valid_on_grid(overlay_on(valid, files.grid(side), grid, nearest=False))

    def _add_points(self, sample: Sample, files: CaseFiles, side: str, grid: Grid) -> None:
        key = f"{side}_landmarks"
        if files.case.has(key):
            with at(files.case, key):
                points = world_landmarks(files.case, key, files.grid(side), self.landmarks_space)
            sample[f"{side}_points"] = torch.from_numpy(grid.to_voxels(points).astype(np.float32))
        elif key in self._optional_keys:
            sample[f"{side}_points"] = torch.zeros(0, 3)


def _own(value: Any) -> Any:
    """What a caller may change: channels of a map, a copy of a tensor."""
    if isinstance(value, LabelMap):
        return value.one_hot()
    return value.clone() if isinstance(value, torch.Tensor) else value
