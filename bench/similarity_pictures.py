"""What similarities see of an MR slice and an ultrasound slice: ``python -m bench.similarity_pictures``.

The pair is a phantom, made here. The ultrasound shows borders of tissue and speckle in a cone, and nothing outside. The
picture has the two images, the maps of similarities where the images lie on each other, and each loss against a shift.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from usreg.registration.stages.similarity import with_margin
from usreg_kernels import gaussian_smooth, lncc_loss, mind_loss, mutual_information_loss

PATH = Path(__file__).parents[1] / "docs" / "images" / "similarities.png"
SIZE = 160
WINDOW = 11
RADIUS, DILATION = 2, 1
SHIFTS = range(-12, 13)


def phantom(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """MR, ultrasound and the ultrasound's cone, each (1, 1, H, W); images from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    mr, echo = torch.full((SIZE, SIZE), 0.35), torch.full((SIZE, SIZE), 0.3)
    for centre, axes, value, brightness in (
        ((0.05, 0.0), (0.75, 0.62), 0.6, 0.25),
        ((0.25, -0.2), (0.24, 0.18), 0.2, 0.45),
        ((-0.2, 0.22), (0.2, 0.26), 0.9, 0.12),
        ((0.45, 0.25), (0.12, 0.2), 0.75, 0.5),
        ((-0.35, -0.25), (0.1, 0.16), 0.25, 0.05),
    ):
        inside = ((y - centre[0]) / axes[0]) ** 2 + ((x - centre[1]) / axes[1]) ** 2 < 1
        mr[inside], echo[inside] = value, brightness
    mr = gaussian_smooth(mr[None, None], 1.0)
    steps = torch.gradient(mr, dim=(2, 3))
    borders = (steps[0].square() + 0.3 * steps[1].square()).sqrt()  # beams come from above
    speckle = gaussian_smooth(torch.rand(1, 1, SIZE, SIZE, generator=generator), 0.8)
    speckle = (speckle / speckle.mean()) ** 3
    cone = (x.abs() < 0.25 + 0.4 * (y + 1)) & (y > -0.9) & (x**2 + (y + 1.2) ** 2 < 3.6)
    ultrasound = (gaussian_smooth(echo[None, None], 1.0) * speckle + 4 * borders).clamp(0, 1)
    return mr + 0.02 * torch.randn(mr.shape, generator=generator), ultrasound * cone, cone[None, None].float()


def losses(
    moving: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor, inner: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Each loss of two images."""
    mind = {"radius": RADIUS, "dilation": DILATION}
    return {
        "lncc, mask": lncc_loss(moving, fixed, kernel_size=WINDOW, smooth_dr=1e-3, mask=mask),
        "mutual_information, mask": mutual_information_loss(moving, fixed, mask=mask),
        "mind": mind_loss(moving, fixed, **mind),
        "mind, mask with margin": mind_loss(moving, fixed, **mind, mask=inner),
    }


def draw(path: Path = PATH) -> Path:
    """Write the picture."""
    mr, ultrasound, cone = phantom()
    inner = with_margin(cone[:, :, None], RADIUS + DILATION)[:, :, 0]
    maps = {
        "lncc (dark: alike)": lncc_loss(mr, ultrasound, kernel_size=WINDOW, smooth_dr=1e-3, reduction="none"),
        "mind (dark: alike)": mind_loss(mr, ultrasound, radius=RADIUS, dilation=DILATION, reduction="none"),
        "mind, mask with margin": mind_loss(mr, ultrasound, radius=RADIUS, dilation=DILATION, reduction="none").where(
            inner > 0, torch.nan
        ),
    }
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (title, image) in zip(axes.flat, {"MR": mr, "ultrasound": ultrasound, **maps}.items(), strict=False):
        axis.imshow(image[0, 0].numpy(), cmap="gray")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    found: dict[str, list[float]] = {}
    for shift in SHIFTS:
        for name, value in losses(mr.roll(shift, 3), ultrasound, cone, inner).items():
            found.setdefault(name, []).append(float(value))
    for name, values in found.items():
        low, high = min(values), max(values)
        axes[1, 2].plot(list(SHIFTS), [(value - low) / (high - low) for value in values], label=name)
    axes[1, 2].set_title("loss, lowest 0, highest 1", fontsize=10)
    axes[1, 2].set_xlabel("shift of the MR, voxels")
    axes[1, 2].legend(fontsize=6, loc="upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    return path


if __name__ == "__main__":
    print(draw())
