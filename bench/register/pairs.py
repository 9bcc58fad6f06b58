"""The pairs that are registered, as NIfTI files that every contender can read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

BRAIN, HIPPOCAMPUS = "brain", "hippocampus"
DATASETS = (BRAIN, HIPPOCAMPUS)

_BRAIN_FILES = (
    "A_voxelmorph_test_scan.npz",
    "B_learn2reg2019_subject_1_vol.npz",
    "B_learn2reg2019_subject_1_seg.npz",
    "voxelmorph_labels30.npz",
)


@dataclass(frozen=True)
class Pair:
    """A pair of images in one world, with labels.

    Attributes:
        name: unique.
        dataset: of :data:`DATASETS`.
        fixed, moving, fixed_label, moving_label: files.
        numbers: the labels whose Dice counts.
    """

    name: str
    dataset: str
    fixed: Path
    moving: Path
    fixed_label: Path
    moving_label: Path
    numbers: tuple[int, ...]


def make_pairs(dataset: str, data: Path, folder: Path) -> list[Pair]:
    """Write the pairs of a data set.

    Args:
        dataset: of :data:`DATASETS`.
        data: the folder that holds ``brain_pair`` and ``hippocampus``.
        folder: for the files; made where it is missing.

    Raises:
        FileNotFoundError: the data set is not in ``data``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_brain(data / "brain_pair", folder)] if dataset == BRAIN else _hippocampus(data / "hippocampus", folder)


def _brain(source: Path, folder: Path) -> Pair:
    fixed, moving, moving_label, numbers = (np.load(source / name) for name in _BRAIN_FILES)
    arrays = {
        "fixed": fixed["vol"].astype(np.float32),
        "moving": _only(moving).astype(np.float32),
        "fixed_label": fixed["seg"].astype(np.int16),
        "moving_label": _only(moving_label).astype(np.int16),
    }
    paths = {name: _write(folder / f"brain_{name}.nii.gz", array, np.eye(4)) for name, array in arrays.items()}
    return Pair(BRAIN, BRAIN, **paths, numbers=tuple(int(number) for number in _only(numbers).ravel()))


def _only(file: np.lib.npyio.NpzFile) -> np.ndarray:
    return file[file.files[0]]


def _hippocampus(source: Path, folder: Path) -> list[Pair]:
    """Images 0 and 1, 2 and 3, ...: the centres of the two boxes are brought together in the moving one's header."""
    images = sorted((source / "images").glob("*.nii.gz"))
    if not images:
        raise FileNotFoundError(f"{source / 'images'} holds no .nii.gz files")
    pairs = []
    for number, (fixed, moving) in enumerate(zip(images[::2], images[1::2], strict=False)):
        shift = _centre(nib.load(fixed)) - _centre(nib.load(moving))
        paths = {
            "fixed": _copy(fixed, folder / f"{number:02}_fixed.nii.gz", np.zeros(3)),
            "fixed_label": _copy(
                source / "labels" / fixed.name, folder / f"{number:02}_fixed_label.nii.gz", np.zeros(3)
            ),
            "moving": _copy(moving, folder / f"{number:02}_moving.nii.gz", shift),
            "moving_label": _copy(source / "labels" / moving.name, folder / f"{number:02}_moving_label.nii.gz", shift),
        }
        pairs.append(Pair(f"hippocampus {number:02}", HIPPOCAMPUS, **paths, numbers=(1, 2)))
    return pairs


def _centre(image: nib.Nifti1Image) -> np.ndarray:
    return (image.affine @ [*(np.array(image.shape) - 1) / 2, 1])[:3]


def _copy(source: Path, target: Path, shift: np.ndarray) -> Path:
    image = nib.load(source)
    affine = image.affine.copy()
    affine[:3, 3] += shift
    return _write(target, np.asarray(image.dataobj).astype(np.float32), affine)


def _write(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path
