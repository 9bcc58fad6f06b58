"""Random changes of training samples: flips, affine maps, smooth deformations and intensities.

Everything of a sample moves together: images (linear), labels and masks (nearest), landmarks and the known field. A
change is a pure function of (seed, epoch, sample), so that workers, processes and resumed runs see the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from ..metrics.landmarks import sample_at_points
from ..models.warp import warp
from .case_files import SIDES
from .phantoms import spline_upsample
from .sample_checks import check_shapes, conformed
from .utils import Sample

if TYPE_CHECKING:
    from ..config import AugmentationConfig

IN_THE_WORLD = ("affine", "moving_affine")
"""What an augmented sample does not have: its voxels have no place in the world."""

_INVERSIONS = 200  # at most; a deformation that cannot fold takes ten to thirty
_CLOSE = 1e-4  # voxels


@dataclass(frozen=True)
class _Map:
    """A map from voxels of the augmented image to those of the given one: T(x) = matrix x + offset + bend(x).

    Attributes:
        matrix: (3, 3), float64, axes z, y, x.
        offset: (3,), float64, in voxels.
        bend: (3, D, H, W), in voxels; it goes on beyond the border as it is there. None for none.
    """

    matrix: torch.Tensor
    offset: torch.Tensor
    bend: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """T at the places (N, 3)."""
        y = x @ self.matrix.T + self.offset
        return y if self.bend is None else y + sample_at_points(self.bend, x.float()).double()

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """The places (N, 3) that T maps to y, by iteration where it bends."""
        back = torch.linalg.inv(self.matrix).T
        x = (y - self.offset) @ back
        for _ in range(0 if self.bend is None or not len(y) else _INVERSIONS):
            before = x
            x = (y - self.offset - sample_at_points(cast(torch.Tensor, self.bend), x.float())) @ back
            if (x - before).abs().max() < _CLOSE:
                break
        return x


class Augmented(Dataset[Sample]):
    """The samples of a dataset, changed at random.

    Sample ``epoch * len(dataset) + i`` is sample i as an epoch has it. The keys ``affine`` and ``moving_affine`` are
    left out.

    Args:
        dataset: whose samples have ``moving`` and ``fixed`` (C, D, H, W).
        options: what may change, and by how much.
        seed: of all changes.
    """

    def __init__(self, dataset: Dataset[Sample], options: AugmentationConfig, seed: int) -> None:
        self.dataset, self.options, self.seed = dataset, options, seed

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, number: int) -> Sample:
        epoch, index = divmod(number, len(self))
        sample = conformed(self.dataset[index], index)
        check_shapes(sample, f"{type(self.dataset).__name__}, case {sample.get('case', index)}")
        sample = {key: value for key, value in sample.items() if key not in IN_THE_WORLD}
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch, index)))
        if rng.uniform() >= self.options.probability:
            return sample
        size = tuple(sample["fixed"].shape[1:])
        spacings = {"fixed": sample.get("spacing"), "moving": sample.get("moving_spacing", sample.get("spacing"))}
        flip = [axis for axis in sorted(set(self.options.flip)) if rng.uniform() < 0.5]
        fixed = self._draw(rng, size, flip, spacings["fixed"])
        moving = self._draw(rng, size, flip, spacings["moving"]) if self.options.separate else fixed
        return self._with_intensities(rng, moved(sample, moving, fixed))

    def _draw(
        self, rng: np.random.Generator, size: tuple[int, ...], flip: list[int], spacing: torch.Tensor | None
    ) -> _Map:
        """A map of the volume; slices stay in their plane: out of it, labels would end and images go on."""
        options = self.options
        flat = [axis for axis, length in enumerate(size) if length == 1]
        mm = np.ones(3) if spacing is None else spacing.double().numpy()
        angles = np.deg2rad(rng.uniform(-options.rotation, options.rotation, 3))
        scales = np.exp(rng.uniform(-1, 1, 3) * math.log1p(options.scaling))
        shift = rng.uniform(-options.translation, options.translation, 3)
        for axis in flat:
            angles[[other for other in range(3) if other != axis]] = 0
            scales[axis], shift[axis] = 1, 0
        turned = np.diag(1 / mm) @ _rotation(angles) @ np.diag(scales * mm)
        turned[:, flip] *= -1
        centre = (np.array(size) - 1) / 2
        offset = centre - turned @ centre + shift
        bend = None
        if options.deformation:
            cells = [max(1, math.ceil((n - 1) / options.deformation_spacing)) for n in size]
            control = rng.uniform(-options.deformation, options.deformation, (3, *(n + 3 for n in cells)))
            control[flat] = 0
            field = spline_upsample(control, (size[0], size[1], size[2]), options.deformation_spacing)
            bend = torch.from_numpy(field.astype(np.float32))
        return _Map(torch.from_numpy(turned), torch.from_numpy(offset), bend)

    def _with_intensities(self, rng: np.random.Generator, sample: Sample) -> Sample:
        for side in SIDES:
            image = sample[side]
            power = math.exp(rng.uniform(-1, 1) * math.log1p(self.options.gamma))
            if power != 1:
                low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
                image = low + (high - low) * ((image - low) / (high - low).clamp(min=1e-12)) ** power
            if self.options.noise_std:
                noise = rng.standard_normal(tuple(image.shape), np.float32)
                image = image + self.options.noise_std * torch.from_numpy(noise)
            sample[side] = image
        return sample


def moved(sample: Sample, moving: _Map, fixed: _Map) -> Sample:
    """A sample whose two images are pulled through two maps, with all that belongs to them."""
    size = sample["fixed"].shape[1:]
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij"), -1)
    places = grid.reshape(-1, 3)
    found = dict(sample)
    for side, through in (("moving", moving), ("fixed", fixed)):
        field = _as_field(through(places) - places, size)
        found[side] = warp(sample[side][None], field, "bilinear", "border")[0]
        for key in (f"{side}_label", f"{side}_mask"):
            if isinstance(sample.get(key), torch.Tensor):
                found[key] = warp(sample[key][None], field, "nearest", "zeros")[0]
        points = sample.get(f"{side}_points")
        if points is not None:
            points = torch.as_tensor(points)
            found[f"{side}_points"] = through.inverse(points.double()).to(points.dtype)
    if isinstance(sample.get("dvf"), torch.Tensor):
        # moving'(x + u'(x)) is moving(T(x) + u(T(x))): u' = M^-1(T(x) + u(T(x))) - x.
        there = fixed(places)
        known = warp(sample["dvf"][None], _as_field(there - places, size), "bilinear", "border")[0]
        targets = moving.inverse(there + known.reshape(3, -1).T.double())
        found["dvf"] = _as_field(targets - places, size)[0]
    return found


def _as_field(displacements: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Displacements (N, 3) of all voxels as a field (1, 3, D, H, W)."""
    return displacements.T.reshape(1, 3, *size).float()


def _rotation(angles: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) about the axes z, y and x, one after the other."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        one, two = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[one, one] = turn[two, two] = math.cos(angle)
        turn[one, two], turn[two, one] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix
