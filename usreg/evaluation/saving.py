"""Files of a case: warped image and labels, the field, a picture."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..io.transforms import write_field
from ..io.writing import write_volume
from ..spatial import DisplacementField, Grid
from ..training.final_report import file_name, save_picture
from .methods import sample_grid

SAVED = {
    "warped": "the moving and the fixed image as the network sees them, and the warped one",
    "labels": "the labels of the warped, the moving and the fixed image, as maps",
    "fields": "the displacement field in mm, for python -m usreg.apply, ITK and ANTs",
    "pictures": "a PNG of the images, the field and its Jacobian determinant",
}
"""What can be saved, and what each is."""

_INSIDE = 0.5


def save_case(
    folder: Path, index: int, inputs: dict[str, Any], wanted: Collection[str], values: Sequence[int] | None = None
) -> None:
    """Write what is wanted of the first sample of a batch.

    Args:
        folder: that of the method.
        index: of the case in its list.
        inputs: see :func:`usreg.metrics.model_inputs`.
        wanted: some of :data:`SAVED`.
        values: of the structures, for maps of labels; None: 1, 2...
    """
    case = str(inputs.get("case", [index])[0])
    place = folder / file_name(index, case)
    place.mkdir(parents=True, exist_ok=True)
    fixed, moving = sample_grid(inputs, 0), sample_grid(inputs, 0, "moving")
    grids = {"fixed": fixed, "moving": moving, "warped": fixed}
    for side, grid in grids.items():
        if "warped" in wanted:
            _write(place / f"{side}.nii.gz", inputs[side][0], grid)
        if "labels" in wanted and f"{side}_label" in inputs:
            _write(place / f"{side}_label.nii.gz", _label_map(inputs[f"{side}_label"][0], values)[None], grid)
    if "fields" in wanted:
        field = DisplacementField.from_voxels(inputs["ddf"][0], fixed, moving)
        displacement = field.displacement.permute(0, 3, 2, 1).contiguous()
        write_field(place / "field.nii.gz", DisplacementField(_reversed(fixed), displacement))
    if "pictures" in wanted:
        save_picture(place / "picture.png", inputs, f"case {case}")


def _write(path: Path, voxels: torch.Tensor, grid: Grid) -> None:
    """Voxels (1, D, H, W) with the axes x, y, z that files have."""
    write_volume(path, np.ascontiguousarray(voxels.cpu().numpy().transpose(0, 3, 2, 1)), _reversed(grid))


def _reversed(grid: Grid) -> Grid:
    return Grid(grid.size[::-1], grid.affine[:, [2, 1, 0, 3]])


def _label_map(label: torch.Tensor, values: Sequence[int] | None) -> torch.Tensor:
    """(D, H, W) int32 of channels (L, D, H, W): the number of the largest that exceeds 0.5, or 0."""
    numbers = torch.tensor(values or range(1, len(label) + 1), dtype=torch.int32, device=label.device)
    largest, channel = label.max(dim=0)
    return torch.where(largest > _INSIDE, numbers[channel], 0)
