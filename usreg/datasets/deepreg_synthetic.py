"""``deepreg_synthetic``: pairs of random volumes with the displacement field that maps one onto the other."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from ..models.warp import warp
from .phantoms import ellipsoids, sample_rng, spline_field
from .synthetic import add_noise, check_synthetic
from .utils import Sample, check_image_size, check_split, register_dataset, wrap_index

_POINTS = 32


@register_dataset("deepreg_synthetic")
class DeepRegSynthetic(Dataset[Sample]):
    """Random soft ellipsoids (moving), and the same warped with a random B-spline field that the sample gives (fixed).

    A sample has

    - ``moving``, ``fixed`` (1, D, H, W) float32 in [0, 1], with ``fixed(x) = moving(x + dvf(x))`` (trilinear, border)
    - ``dvf`` (3, D, H, W) float32: the fixed-to-moving pull-back displacement in voxels, channels z, y, x
    - ``moving_mask``, ``fixed_mask`` (1, D, H, W) float32, 0 or 1: the foreground
    - ``fixed_points``, ``moving_points`` (32, 3) float32 voxels z, y, x, with ``moving_points = p + dvf(p)``, p being
      voxels of the fixed foreground
    - ``case``

    Sample i is a pure function of (seed, split, i): the same in any process, in any order.

    Args:
        num_samples: number of pairs, 1 or more.
        image_size: [D, H, W] in voxels; [1, H, W] or [H, W] for slices.
        max_disp: largest displacement of a control point per axis, in normalised coordinates, half the extent being 1:
            the first and last voxel are at -1 and 1, so that 0.2 is 0.2 (size - 1) / 2 voxels.
        cp_spacing: distance of the field's control points in voxels. Below about ``2 max_disp`` in voxels it can fold.
        noise_std: standard deviation of the Gaussian noise of the moving image; the fixed one gets it by the warp.
        smooth: edges are two voxels wide instead of sharp.
        seed: 0 or more.
        split: ``"train"``, ``"val"`` or ``"test"``; splits differ even for equal seeds.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self,
        num_samples: int,
        image_size: tuple[int, int, int] = (64, 64, 64),
        max_disp: float = 0.2,
        cp_spacing: int = 8,
        noise_std: float = 0.03,
        smooth: bool = True,
        seed: int = 123,
        split: str = "train",
    ) -> None:
        check_synthetic(num_samples, noise_std, seed)
        if not 0 <= max_disp <= 1:
            raise ValueError(f"max_disp is a part of half the extent, from 0 to 1, not {max_disp}")
        if cp_spacing < 1:
            raise ValueError(f"cp_spacing must be 1 voxel or more, not {cp_spacing}")
        self.num_samples = num_samples
        self.image_size = check_image_size(image_size)
        self.max_disp = max_disp
        self.cp_spacing = cp_spacing
        self.noise_std = noise_std
        self.smooth = smooth
        self.seed = seed
        self.split = check_split(split)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Sample:
        index = wrap_index(index, self.num_samples)
        rng = sample_rng(self.seed, self.split, index)
        anatomy, mask = ellipsoids(rng, self.image_size, self.smooth)
        moving = add_noise(rng, torch.from_numpy(anatomy)[None], self.noise_std)
        dvf = torch.from_numpy(spline_field(rng, self.image_size, self.max_disp, self.cp_spacing))
        moving_mask = torch.from_numpy(mask)[None]
        fixed, soft_mask = warp(torch.cat([moving, moving_mask])[None], dvf[None], "bilinear", "border")[0]
        fixed_mask = (soft_mask[None] > 0.5).float()
        fixed_points, moving_points = _corresponding_points(rng, dvf, fixed_mask)
        return {
            "moving": moving,
            "fixed": fixed[None],
            "dvf": dvf,
            "moving_mask": moving_mask,
            "fixed_mask": fixed_mask,
            "fixed_points": fixed_points,
            "moving_points": moving_points,
            "case": f"{self.split}[{index}]",
        }


def _corresponding_points(
    rng: np.random.Generator, dvf: torch.Tensor, fixed_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels p of the fixed mask (1, D, H, W) and p + dvf(p), each (32, 3) in voxels z, y, x."""
    allowed = fixed_mask[0] if fixed_mask.any() else torch.ones_like(fixed_mask[0])  # tiny volumes may hold nothing
    foreground = allowed.nonzero()
    chosen = foreground[torch.from_numpy(rng.integers(len(foreground), size=_POINTS))]
    z, y, x = chosen.unbind(1)
    return chosen.float(), chosen + dvf[:, z, y, x].T
