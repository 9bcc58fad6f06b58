"""The guide to custom losses runs as written: inside a copy of the package, and from a user's file as a plugin.

The modules below are the guide's code blocks, joined in its order.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import usreg
import usreg_kernels

MY_LOSS = '''"""My custom loss function."""

from __future__ import annotations

import torch
from torch import nn
from .utils import register_loss


class MyCustomLoss(nn.Module):
    """
    Example: Weighted combination of MSE and L1.
    """
    
    def __init__(self, mse_weight: float = 1.0, l1_weight: float = 0.5):
        super().__init__()
        self.mse_weight = mse_weight
        self.l1_weight = l1_weight
    
    def forward(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        mse = torch.nn.functional.mse_loss(warped, fixed)
        l1 = torch.nn.functional.l1_loss(warped, fixed)
        return self.mse_weight * mse + self.l1_weight * l1


@register_loss("my_custom_loss")
def create_my_custom_loss(
    mse_weight: float = 1.0,
    l1_weight: float = 0.5,
    **_,   # absorb extra config keys gracefully
) -> nn.Module:
    return MyCustomLoss(mse_weight=mse_weight, l1_weight=l1_weight)
'''  # noqa: W293

MY_CONFIG = """
loss:
  name: my_custom_loss
  mse_weight: 1.0
  l1_weight: 0.5
"""

DICE_SMOOTH = '''"""Dice similarity loss + deformation field smoothness regularization."""

from __future__ import annotations

import torch
from torch import nn
import torch.nn.functional as F
from .utils import register_loss


class DiceSmoothLoss(nn.Module):
    """
    Combined loss:
      - Soft Dice: penalizes misalignment of intensity distributions
      - Gradient smoothness: penalizes jagged/folding deformations
    
    Total = dice_weight * dice_loss + smooth_weight * smoothness_loss
    """

    def __init__(
        self,
        dice_weight: float = 1.0,
        smooth_weight: float = 0.01,
        epsilon: float = 1e-5,
    ):
        super().__init__()
        self.dice_weight = dice_weight
        self.smooth_weight = smooth_weight
        self.epsilon = epsilon

    def _soft_dice(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Soft Dice loss (1 - Dice coefficient)."""
        intersection = (pred * target).sum()
        union = pred.sum() + target.sum()
        dice = (2.0 * intersection + self.epsilon) / (union + self.epsilon)
        return 1.0 - dice

    def _gradient_smoothness(self, ddf: torch.Tensor) -> torch.Tensor:
        """L2 norm of spatial gradients of the displacement field."""
        dz = torch.diff(ddf, dim=2)
        dy = torch.diff(ddf, dim=3)
        dx = torch.diff(ddf, dim=4)
        return dz.pow(2).mean() + dy.pow(2).mean() + dx.pow(2).mean()

    def forward(
        self,
        warped: torch.Tensor,
        fixed: torch.Tensor,
        pred_dvf: torch.Tensor | None = None,
        gt_dvf: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # Image similarity
        dice_loss = self._soft_dice(warped, fixed)
        total = self.dice_weight * dice_loss

        # Smoothness regularization (only if DDF is available)
        if self.smooth_weight > 0 and pred_dvf is not None:
            smooth_loss = self._gradient_smoothness(pred_dvf)
            total = total + self.smooth_weight * smooth_loss

        return total


@register_loss("dice_smooth")
def create_dice_smooth(
    dice_weight: float = 1.0,
    smooth_weight: float = 0.01,
    epsilon: float = 1e-5,
    **_,
) -> nn.Module:
    return DiceSmoothLoss(
        dice_weight=dice_weight,
        smooth_weight=smooth_weight,
        epsilon=epsilon,
    )
'''  # noqa: W293

DICE_CONFIG = """
loss:
  name: dice_smooth
  dice_weight: 1.0
  smooth_weight: 0.01
"""

STABLE = '''"""The guide's stability tip, in a loss."""

import torch
from torch import nn
from .utils import register_loss
from .utils import validate_smoothing_params


@register_loss("stable")
def create_stable(smooth_nr: float = 0.0, smooth_dr: float = 0.0, **_) -> nn.Module:
    smooth_nr, smooth_dr = validate_smoothing_params(smooth_nr, smooth_dr)
    assert (smooth_nr, smooth_dr) == (1e-4, 1e-2)
    return nn.MSELoss()
'''

STABLE_CONFIG = """
loss:
  name: stable
"""

REST_OF_CONFIG = """
image_size: [8, 8, 8]
train_dataset: {name: synthetic_ellipsoids, num_samples: 1}
val_dataset: {name: synthetic_ellipsoids, num_samples: 1}
model: {name: localnet3d}
optimizer: {lr: 1e-4}
training: {epochs: 1, batch_size: 1}
"""

USE = """
import sys
import torch
from usreg.config import load_config
from usreg.losses import LOSS_REGISTRY, build_loss

for file in sys.argv[1:]:
    cfg = load_config(file).loss
    warped, fixed = torch.full((1, 1, 4, 4, 4), 0.5, requires_grad=True), torch.ones(1, 1, 4, 4, 4)
    loss = build_loss(cfg)(warped, fixed)
    loss.backward()
    print(cfg["name"], LOSS_REGISTRY[cfg["name"]].__module__, f"{loss.item():.4f}")
"""

GUIDE = {"my_loss": (MY_LOSS, MY_CONFIG), "my_dice": (DICE_SMOOTH, DICE_CONFIG), "my_stable": (STABLE, STABLE_CONFIG)}
VALUES = {"my_custom_loss": 0.25 + 0.5 * 0.5, "dice_smooth": 1 - 2 * 0.5 / 1.5, "stable": 0.25}


def write_guide(code_folder: Path, config_folder: Path, plugins: bool) -> list[str]:
    """Write the guide's modules and configs; returns the names of the config files."""
    for module, (code, config) in GUIDE.items():
        (code_folder / f"{module}.py").write_text(code)
        named = f"plugins: [{module}]\n" if plugins else ""
        (config_folder / f"{module}.yaml").write_text(config + REST_OF_CONFIG + named)
    return [f"{module}.yaml" for module in GUIDE]


def run(folder: Path, package_root: Path, configs: list[str]) -> subprocess.CompletedProcess[str]:
    """Run USE in a folder, with the packages of ``package_root``."""
    environment = {**os.environ, "PYTHONPATH": str(package_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE, *configs]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def results(modules: list[str]) -> str:
    """What USE prints when the losses come from these modules."""
    values = zip(VALUES.items(), modules, strict=True)
    return "".join(f"{name} {module} {value:.4f}\n" for (name, value), module in values)


USREG = Path(str(usreg.__file__)).parent
KERNELS = Path(str(usreg_kernels.__file__)).parent
REPLACED = "replaces the built-in usreg.losses.dice_smooth.create_dice_smooth"


@pytest.mark.slow
def test_inside_the_package(tmp_path: Path) -> None:
    shutil.copytree(USREG, tmp_path / "usreg", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "usreg_kernels").symlink_to(KERNELS)
    losses = tmp_path / "usreg" / "losses"
    configs = write_guide(losses, tmp_path, plugins=False)
    with (losses / "__init__.py").open("a", encoding="utf-8") as file:
        file.writelines(f"from . import {module}   # ← add this line\n" for module in GUIDE)
    done = run(tmp_path, tmp_path, configs)
    assert done.returncode == 0, done.stderr
    assert done.stdout == results([f"usreg.losses.{module}" for module in GUIDE])
    assert f"usreg.losses.my_dice.create_dice_smooth {REPLACED}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imported_from", "prefix"),
    [(".utils", "usreg.losses.plugin_"), ("usreg.losses.utils", ""), ("usreg.losses", "")],
    ids=["as written", "full name", "package"],
)
def test_as_a_plugin(tmp_path: Path, imported_from: str, prefix: str) -> None:
    configs = write_guide(tmp_path, tmp_path, plugins=True)
    for module in GUIDE:
        file = tmp_path / f"{module}.py"
        file.write_text(file.read_text().replace("from .utils import", f"from {imported_from} import"))
    done = run(tmp_path, USREG.parent, configs)
    assert done.returncode == 0, done.stderr
    assert done.stdout == results([f"{prefix}{module}" for module in GUIDE])
    assert f"{prefix}my_dice.create_dice_smooth {REPLACED}" in done.stderr
