"""What ``python -m usreg.register`` does: files in, a folder of files out."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from usreg_kernels import jacobian_determinant

from ..config.checks import available_devices
from ..errors import ConfigError, DataError, UsageError
from ..io import read_volume
from ..io.transforms import read_transform, write_affine, write_field
from ..metrics.field import folding_ratio, log_jacobian_std
from ..metrics.intensity import global_ncc
from ..metrics.label_volumes import mean_dice, structures
from ..spatial import Affine, Grid, Transform, resample
from .pair import Registration, Volume, register_pair
from .stages import Stage, load_stages

CONTENTS = {
    "warped.nii.gz": "the moving image on the fixed image's grid",
    "affine.mat": "the affine, as ITK and ANTs read it",
    "field.nii.gz": "the displacement field in mm, as ITK and ANTs read it",
    "inverse_field.nii.gz": "its inverse",
    "jacobian.nii.gz": "Jacobian determinant of the field: 0 or less where it folds",
    "warped_label.nii.gz": "the moving label on the fixed image's grid",
    "report.json": "losses, seconds and measures, before and after",
}


def run(options: argparse.Namespace, console: Console) -> Registration:
    """Register the files that the command line names, and write the results.

    Raises:
        UsageError: something that the user can put right, found before any work where that is possible.
    """
    config, stages = load_stages(options.config, options.overrides)
    device = _device(config.device)
    fixed, moving = (_read(path) for path in (options.fixed, options.moving))
    labels = _labels(options.fixed_label, options.moving_label)
    start = _start(options.initial, config.start, fixed.grid, moving.grid)
    out = _writable_folder(Path(options.out))

    began = time.perf_counter()
    with _Bars(console, stages) as progress:
        found = register_pair(
            fixed, moving, stages, quantiles=config.quantiles, start=start, device=device, progress=progress
        )
    seconds = time.perf_counter() - began
    report = _write(out, fixed, moving, labels, found, start)
    report |= {"seconds": seconds, "device": device, "fixed": options.fixed, "moving": options.moving}
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _show(console, report, out)
    return found


def _read(path: str) -> Volume:
    image = read_volume(Path(path))
    affine = np.asarray(image.affine, dtype=np.float64)
    size = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    return Volume(image.as_tensor().float(), Grid(size, affine))


def _labels(fixed_path: str | None, moving_path: str | None) -> tuple[Volume, Volume] | None:
    """The two labels, if they are given, checked before any work."""
    if fixed_path is None and moving_path is None:
        return None
    if fixed_path is None or moving_path is None:
        raise UsageError("--fixed-label and --moving-label go together: Dice compares the two")
    labels = _read(fixed_path), _read(moving_path)
    for path, label in zip((fixed_path, moving_path), labels, strict=True):
        if len(label.voxels) != 1:
            raise DataError(f"{path} has {len(label.voxels)} channels; a label map of whole numbers is needed")
    if not set(structures(labels[0].voxels)) & set(structures(labels[1].voxels)):
        raise DataError(f"{fixed_path} and {moving_path} have no structure in common: there is nothing to compare")
    return labels


def _dice(fixed: Volume, moving: Volume, transform: Transform) -> float:
    return mean_dice(moving.voxels, moving.grid, fixed.voxels, fixed.grid, transform)


def _device(wanted: str | None) -> str:
    devices = available_devices()
    if wanted is None:
        return devices[min(1, len(devices) - 1)]
    if wanted not in devices:
        raise ConfigError(f"device is {wanted!r}; this machine has {', '.join(devices)}")
    return wanted


def _start(initial: str | None, start: str, fixed: Grid, moving: Grid) -> Affine:
    if initial is not None:
        transform = read_transform(Path(initial))
        if not isinstance(transform, Affine):
            raise UsageError(f"--initial takes an affine, and {initial} is a displacement field")
        return transform
    matrix = np.eye(4)
    if start == "centres":
        matrix[:3, 3] = moving.centre - fixed.centre
    return Affine(matrix)


def _writable_folder(out: Path) -> Path:
    """The folder, made; results that are there already are not overwritten."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise UsageError(f"cannot write to the folder {out}: {error}") from error
    if taken := sorted(name for name in CONTENTS if (out / name).exists()):
        raise UsageError(f"{out} already holds {', '.join(taken)}: name another folder by --out, or empty this one")
    return out


class _Bars:
    """A bar per stage and level, with the loss; plain where the output is no terminal."""

    def __init__(self, console: Console, stages: list[Stage]) -> None:
        self.stages = stages
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.5f}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[tuple[int, int], Any] = {}

    def __enter__(self) -> _Bars:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, stage: int, level: int, iteration: int, loss: float) -> None:
        settings = self.stages[stage]
        if (stage, level) not in self.tasks:
            title = f"{settings.stage}, 1/{settings.levels[level]:g}"
            self.tasks[stage, level] = self.bar.add_task(title, total=settings.iterations[level], loss=loss)
        self.bar.update(self.tasks[stage, level], completed=iteration, loss=loss)


def _write(
    out: Path, fixed: Volume, moving: Volume, labels: tuple[Volume, Volume] | None, found: Registration, start: Affine
) -> dict[str, Any]:
    """All files but the report, and what the report says of them."""
    warped = resample(moving.voxels, moving.grid, fixed.grid, found.transform, padding_mode="zeros")
    before = resample(moving.voxels, moving.grid, fixed.grid, start, padding_mode="zeros")
    _save(out / "warped.nii.gz", warped[0].numpy(), fixed.grid)
    write_affine(out / "affine.mat", found.affine)
    measures: dict[str, Any] = {"ncc": _both(before, warped, lambda image: _ncc(image, fixed.voxels))}
    if found.field is not None and found.inverse_field is not None and found.ddf is not None:
        write_field(out / "field.nii.gz", found.field)
        write_field(out / "inverse_field.nii.gz", found.inverse_field)
        jacobian = jacobian_determinant(found.ddf)
        _save(out / "jacobian.nii.gz", jacobian.reshape(fixed.grid.size).numpy(), fixed.grid)
        measures["folded"] = {"after": folding_ratio(found.ddf).item()}
        measures["log_jacobian_std"] = {"after": log_jacobian_std(found.ddf).item()}
        measures["inverse_consistency_voxels"] = {"after": found.inverse_miss}
    if labels is not None:
        moving_label = labels[1]
        label = resample(
            moving_label.voxels,
            moving_label.grid,
            fixed.grid,
            found.transform,
            mode="nearest",
            padding_mode="zeros",
        )
        _save(out / "warped_label.nii.gz", label[0].round().to(torch.int32).numpy(), fixed.grid)
        measures["dice"] = {"before": _dice(*labels, start), "after": _dice(*labels, found.transform)}
    stages = [{"stage": s.stage, "seconds": s.seconds, "losses": s.losses} for s in found.stages]
    return {"measures": measures, "stages": stages, "affine_ras": found.affine.matrix.tolist()}


def _both(before: torch.Tensor, after: torch.Tensor, measure: Callable[[torch.Tensor], float]) -> dict[str, float]:
    return {"before": measure(before), "after": measure(after)}


def _ncc(image: torch.Tensor, fixed: torch.Tensor) -> float:
    return global_ncc(image[None], fixed[None]).item()


def _save(path: Path, voxels: np.ndarray[Any, Any], grid: Grid) -> None:
    image = nib.Nifti1Image(voxels, grid.affine)
    image.set_sform(grid.affine, 1)
    image.set_qform(grid.affine, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _show(console: Console, report: dict[str, Any], out: Path) -> None:
    table = Table("measure", "before", "after")
    for name, values in report["measures"].items():
        table.add_row(name, *(f"{values[k]:.4g}" if values.get(k) is not None else "" for k in ("before", "after")))
    console.print(table)
    console.print(f"registered in {report['seconds']:.1f} s; results in {out}", soft_wrap=True)
    for name, what in CONTENTS.items():
        if (out / name).exists():
            console.print(f"  {name}: {what}", soft_wrap=True)
