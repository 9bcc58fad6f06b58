"""What a registration is given, as files or as arrays, read and checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import ArrayLike

from ...config.checks import available_devices
from ...errors import ConfigError, DataError, UsageError
from ...io import read_landmarks, read_volume
from ...io.landmarks import check_landmarks_space
from ...metrics.label_volumes import structures
from ...spatial import Affine, Chain, Grid, Transform, resample
from ...spatial.grid import Points
from ...transformation.chains import TransformLike, links_of
from ..outputs.results import Inputs
from ..pair import PreparedPair, prepare_pair
from ..stages.settings import RegisterConfig, Stage
from ..transforms import network, starts
from .preparing import Volume, check_pair, make_side
from .sides import flat_axis

ImageLike: TypeAlias = "str | Path | Volume | MetaTensor | tuple[ArrayLike, ArrayLike]"
"""A file; a :class:`Volume`; MONAI's tensor (C, X, Y, Z); or an array (X, Y), (X, Y, Z) or (C, X, Y, Z) with its affine
(4, 4), from indices in the order of the array's axes to mm, RAS."""

PointsLike: TypeAlias = "str | Path | ArrayLike"
"""A file of landmarks, or an array (N, 3)."""


@dataclass(frozen=True)
class Pair:
    """What a registration is given.

    Attributes:
        fixed, moving: images of finite numbers.
        fixed_mask, moving_mask: above 0 is what counts, on grids of their own.
        fixed_label, moving_label: whole numbers, on grids of their own.
        fixed_points, moving_points: (N, 3) mm, RAS, of the same places.
    """

    fixed: Volume
    moving: Volume
    fixed_mask: Volume | None = None
    moving_mask: Volume | None = None
    fixed_label: Volume | None = None
    moving_label: Volume | None = None
    fixed_points: Points | None = None
    moving_points: Points | None = None


def read_pair(
    config: RegisterConfig,
    fixed: ImageLike,
    moving: ImageLike,
    *,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    fixed_label: ImageLike | None = None,
    moving_label: ImageLike | None = None,
    fixed_landmarks: PointsLike | None = None,
    moving_landmarks: PointsLike | None = None,
    landmarks_space: str | None = None,
) -> Pair:
    """Read everything.

    Args:
        config: its ``header`` and ``nan`` say how.
        fixed, moving: the images.
        fixed_mask, moving_mask, fixed_label, moving_label: volumes in the worlds of their images.
        fixed_landmarks, moving_landmarks: paired one by one.
        landmarks_space: ``lps``, ``ras`` or ``voxel``, of landmarks whose files do not say it; ``lps`` without it.

    Raises:
        UsageError: a file cannot be read, an array has no affine or another shape, voxels are NaN or infinite and
            ``nan`` does not allow it, only one of two labels or landmarks is given, or their numbers differ.
    """
    for kind, one, other in (("label", fixed_label, moving_label), ("landmarks", fixed_landmarks, moving_landmarks)):
        if one is not None and other is None:
            raise UsageError(f"fixed_{kind} and moving_{kind} go together, and moving_{kind} is missing")
    volumes: dict[str, Any] = {}
    masks = {"fixed_mask": fixed_mask, "moving_mask": moving_mask}
    for side, image in (("fixed", fixed), ("moving", moving)):
        key = f"{side}_mask"
        mask = masks[key]
        if mask is not None:
            volumes[key], _ = _finite(key, *_read(key, mask, config), "error")
        volumes[side], valid = _finite(side, *_read(side, image, config), config.nan)
        if valid is not None and config.nan == "mask":
            volumes[key] = _common_mask(volumes.get(key), valid)
    volumes |= _labels(config, fixed_label, moving_label)
    points: dict[str, Any] = {}
    for side, landmarks in (("fixed", fixed_landmarks), ("moving", moving_landmarks)):
        if landmarks is not None:
            points[f"{side}_points"] = _points(landmarks, volumes[side].grid, landmarks_space)
    if len(points) == 2 and len(points["fixed_points"]) != len(points["moving_points"]):
        names = [
            str(given) if isinstance(given, str | Path) else f"{side}_landmarks"
            for side, given in (("fixed", fixed_landmarks), ("moving", moving_landmarks))
        ]
        raise DataError(
            f"{names[0]} has {len(points['fixed_points'])} landmarks and {names[1]} {len(points['moving_points'])}; "
            "they are paired one by one, so both need the same number"
        )
    return Pair(**volumes, **points)


def _labels(config: RegisterConfig, fixed: ImageLike | None, moving: ImageLike | None) -> dict[str, Volume]:
    """The labels that are given, checked."""
    labels, names = {}, []
    for key, given in (("fixed_label", fixed), ("moving_label", moving)):
        if given is None:
            continue
        read = _read(key, given, config)
        labels[key], _ = _finite(key, *read, "error")
        names.append(read[1])
        if len(labels[key].voxels) != 1:
            raise DataError(
                f"{names[-1]} has {len(labels[key].voxels)} channels; a label map of whole numbers is needed"
            )
    found = [set(structures(label.voxels)) for label in labels.values()]
    if len(found) == 2 and not found[0] & found[1]:
        raise DataError(f"{names[0]} and {names[1]} have no structure in common: there is nothing to compare")
    return labels


def _read(name: str, given: ImageLike, config: RegisterConfig) -> tuple[Volume, str]:
    """The volume, NaN and all, and how to call it."""
    if isinstance(given, str | Path):
        image = read_volume(Path(given), config.header, allow_nan=True)  # type: ignore[arg-type]
        return _with_affine(name, image.as_tensor(), image.affine), str(given)
    if isinstance(given, Volume):
        return given, f"the {name.replace('_', ' ')}"
    if isinstance(given, MetaTensor):
        return _with_affine(name, given.as_tensor(), given.affine), f"the {name.replace('_', ' ')}"
    if isinstance(given, tuple) and len(given) == 2:
        return _with_affine(name, *given), f"the {name.replace('_', ' ')}"
    raise DataError(
        f"{name} is {type(given).__name__}; it must be a file, a tuple (array, affine), MONAI's MetaTensor or a "
        "Volume. An array by itself does not say where its voxels lie"
    )


def _with_affine(name: str, array: ArrayLike, affine: ArrayLike) -> Volume:
    voxels = torch.as_tensor(array).detach().cpu()
    if voxels.dim() == 2:
        voxels = voxels[None, :, :, None]
    elif voxels.dim() == 3:
        voxels = voxels[None]
    if voxels.dim() != 4 or not voxels.numel():
        raise DataError(
            f"{name} has the shape {tuple(voxels.shape)}; (X, Y), (X, Y, Z) or (C, X, Y, Z) is needed, with one voxel "
            "or more"
        )
    try:
        grid = Grid((voxels.shape[1], voxels.shape[2], voxels.shape[3]), np.asarray(affine, dtype=np.float64))
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    return Volume(voxels.float(), grid)


def _finite(key: str, volume: Volume, name: str, rule: str) -> tuple[Volume, Volume | None]:
    """The volume with NaN replaced by the lowest value, and where it had numbers; None where it had them all."""
    voxels = volume.voxels
    if bad := int(voxels.isinf().sum()):
        raise DataError(f"{name}: {bad} of {voxels.numel()} voxels are infinite; replace them by numbers")
    missing = voxels.isnan()
    if not (count := int(missing.sum())):
        return volume, None
    if count == voxels.numel():
        raise DataError(f"{name}: all voxels are NaN; there is nothing to register")
    if rule == "error":
        way = "write 0 instead" if "_" in key else "set nan=fill (the lowest value) or nan=mask (left out by a mask)"
        raise DataError(f"{name}: {count} of {voxels.numel()} voxels are NaN; {way}")
    filled = voxels.masked_fill(missing, float(voxels[~missing].min()))
    valid = (~missing).all(dim=0, keepdim=True).float()
    return Volume(filled, volume.grid), Volume(valid, volume.grid)


def _common_mask(mask: Volume | None, valid: Volume) -> Volume:
    """What a mask and the valid voxels of its image have in common, on the image's grid."""
    if mask is None:
        return valid
    there = resample((mask.voxels > 0).float(), mask.grid, valid.grid, padding_mode="zeros") >= 0.5
    return Volume(valid.voxels * there, valid.grid)


def _points(given: PointsLike, grid: Grid, space: str | None) -> Points:
    source = Path(given) if isinstance(given, str | Path) else np.asarray(given).tolist()
    try:
        return read_landmarks(source).to_world(grid, check_landmarks_space(space))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True)
class Start:
    """Where a registration starts.

    Attributes:
        transform: from the fixed image's world to the moving one's.
        before: the same without the prediction of a network: what the result is compared with.
        name: of the start in words.
    """

    transform: Transform
    before: Transform
    name: str


def find_start(
    pair: Pair,
    config: RegisterConfig,
    initial: TransformLike | Sequence[TransformLike] | None = None,
    checkpoint: str | Path | None = None,
    device: str = "cpu",
) -> Start:
    """Where a registration starts.

    Args:
        pair: the images, and what the start needs.
        config: its ``start`` says where, if there is no ``initial``.
        initial: a transform or several, as :func:`usreg.apply` takes them, or their files.
        checkpoint: of a trained network, which then registers the moving image as the start places it.
        device: of the network.

    Raises:
        UsageError: a transform or a checkpoint cannot be read or used, landmarks are missing or do not fix the map.
    """
    if initial is not None:
        links = links_of(initial)
        parts = [link.transform for link in links]
        start: Transform = parts[0] if len(parts) == 1 else Chain(parts)
        name = ", ".join(dict.fromkeys(link.name for link in links))
    else:
        start, name = _by_name(pair, config), START_NAMES[config.start]
    if checkpoint is None:
        return Start(start, start, name)
    parts = [link.transform for link in links_of(start)]
    if not all(isinstance(part, Affine) for part in parts):
        raise UsageError("the initial transform holds a field, and so does the prediction of the checkpoint; give one")
    affine, _ = starts.as_field_and_affine(start, pair.fixed.grid)
    loaded = network.load_network(Path(checkpoint), device)
    moving = pair.moving
    placed = Volume(moving.voxels, Grid(moving.grid.size, np.linalg.inv(affine.matrix) @ moving.grid.affine))
    is_ct = {side: config.scaling(side).window is not None for side in ("fixed", "moving")}
    predicted = network.predict(loaded, pair.fixed, placed, is_ct, pair.fixed_label)
    transform = Chain([*predicted.transforms, affine])
    return Start(transform, affine, f"{name}, then the prediction of {loaded.path}")


START_NAMES = {
    "headers": "where the headers put the images",
    "centres": "centres of the boxes",
    "moments": "centres of mass",
    "landmarks": "pairs of landmarks",
}


def _by_name(pair: Pair, config: RegisterConfig) -> Affine:
    fixed, moving = pair.fixed.grid, pair.moving.grid
    if config.start == "centres":
        return starts.by_centres(fixed, moving)
    if config.start == "landmarks":
        if pair.fixed_points is None or pair.moving_points is None:
            raise UsageError("start=landmarks needs fixed_landmarks and moving_landmarks")
        normal = starts.normal_of(fixed) if flat_axis(moving) is not None else None
        return starts.by_landmarks(pair.fixed_points, pair.moving_points, config.landmarks_model, normal)
    placed = starts.at_headers(fixed, moving)
    if config.start == "moments":
        sides = (
            make_side("fixed", pair.fixed, config.scaling("fixed"), pair.fixed_mask),
            make_side("moving", pair.moving, config.scaling("moving"), pair.moving_mask),
        )
        check_pair(*sides)
        return starts.by_moments(*sides, placed)
    return placed


def chosen_device(wanted: str | None) -> str:
    """The device of a config, or the fastest there is.

    Raises:
        ConfigError: this machine does not have it.
    """
    devices = available_devices()
    if wanted is None:
        return devices[min(1, len(devices) - 1)]
    if wanted not in devices:
        raise ConfigError(f"device is {wanted!r}; this machine has {', '.join(devices)}")
    return wanted


def prepare_given(
    pair: Pair, config: RegisterConfig, stages: Sequence[Stage], start: Transform, device: str
) -> PreparedPair:
    """:func:`prepare_pair` with all that a pair and a config hold."""
    return prepare_pair(
        pair.fixed,
        pair.moving,
        stages,
        start=start,
        device=device,
        scaling={side: config.scaling(side) for side in ("fixed", "moving")},
        fixed_mask=pair.fixed_mask,
        moving_mask=pair.moving_mask,
        fixed_label=pair.fixed_label,
        moving_label=pair.moving_label,
        seconds=config.seconds,
    )


def make_inputs(pair: Pair, start: Start) -> Inputs:
    """What the results and their measures are made of."""
    return Inputs(
        pair.fixed,
        pair.moving,
        start.before,
        pair.fixed_label,
        pair.moving_label,
        pair.fixed_points,
        pair.moving_points,
    )
