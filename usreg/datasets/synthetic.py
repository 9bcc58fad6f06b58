"""``synthetic_ellipsoids``: pairs of random volumes that differ by a small deformation the sample keeps secret."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from ..models.warp import warp
from .phantoms import FloatArray, ellipsoids, sample_rng, spline_field
from .utils import Sample, check_image_size, check_split, register_dataset, wrap_index

_HIDDEN_MAX_DISP = 0.1  # of half the extent
_HIDDEN_CELLS = 4  # control points of the hidden deformation per extent


@register_dataset("synthetic_ellipsoids")
class SyntheticEllipsoids(Dataset[Sample]):
    """Random soft ellipsoids (fixed), and the same under a small random smooth deformation (moving).

    A sample has ``moving``, ``fixed`` (1, D, H, W) float32 in [0, 1], and ``case``. Sample i is a pure function of
    (seed, split, i): the same in any process, in any order.

    Args:
        num_samples: number of pairs, 1 or more.
        image_size: [D, H, W] in voxels; [1, H, W] or [H, W] for slices.
        noise_std: standard deviation of the Gaussian noise, independent in the two images.
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
        noise_std: float = 0.03,
        smooth: bool = True,
        seed: int = 123,
        split: str = "train",
    ) -> None:
        check_synthetic(num_samples, noise_std, seed)
        self.num_samples = num_samples
        self.image_size = check_image_size(image_size)
        self.noise_std = noise_std
        self.smooth = smooth
        self.seed = seed
        self.split = check_split(split)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Sample:
        index = wrap_index(index, self.num_samples)
        rng = sample_rng(self.seed, self.split, index)
        anatomy, _ = ellipsoids(rng, self.image_size, self.smooth)
        hidden = spline_field(rng, self.image_size, _HIDDEN_MAX_DISP, max(self.image_size) / _HIDDEN_CELLS)
        fixed = torch.from_numpy(anatomy)[None]
        moving = warp(fixed[None], torch.from_numpy(hidden)[None], "bilinear", "border")[0]
        return {
            "moving": add_noise(rng, moving, self.noise_std),
            "fixed": add_noise(rng, fixed, self.noise_std),
            "case": f"{self.split}[{index}]",
        }


def check_synthetic(num_samples: int, noise_std: float, seed: int) -> None:
    """Raise a ValueError for a value that no synthetic dataset can use."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be 1 or more, not {num_samples}: an empty dataset cannot be used")
    if not 0 <= noise_std < float("inf"):
        raise ValueError(f"noise_std must be 0 or more, not {noise_std}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")


def add_noise(rng: np.random.Generator, image: torch.Tensor, std: float) -> torch.Tensor:
    """``image`` (1, D, H, W) plus Gaussian noise, clipped to [0, 1]."""
    noise: FloatArray = rng.standard_normal(tuple(image.shape), np.float32)
    return (image + std * torch.from_numpy(noise)).clamp(0, 1)
