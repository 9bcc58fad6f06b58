"""What a training step is made of: network, warp, loss and optimizer, each timed by itself, in turns.

Network and optimizer are the same for both contenders. What differs is the warp and the loss: the fused ones, or
MONAI's blocks with the same terms (forward differences in plain PyTorch, which MONAI lacks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.cases import WINDOW
from bench.contenders import third_party_warnings_ignored
from bench.end_to_end import NAMES, OURS, monai_lncc, quick_settings
from bench.gpu import Run
from bench.plain import finite_differences
from bench.timing import Times, interleave

PARTS = ("network", "warp", "loss", "optimizer")
"""Network, warp and loss with their backward passes."""

CONFIGS: dict[str, list[str]] = {
    "default": [],
    "localnet3d, lncc_smooth": [
        "image_size=[96,96,96]",
        "model={name: localnet3d}",
        f"loss={{name: lncc_smooth, kernel_size: {WINDOW}}}",
        "training.batch_size=1",
    ],
}
"""By name, settings beside the default config's."""

Loss = Callable[[torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]


@dataclass(frozen=True)
class Parts:
    """Times of the parts of one contender's training step.

    Attributes:
        shape: of the volumes.
        times: by the names of PARTS.
        loss: the value that was timed; both contenders' must agree.
    """

    shape: tuple[int, ...]
    times: dict[str, Times]
    loss: float

    @property
    def step(self) -> Times:
        """The sum of the parts, of each turn."""
        walls = zip(*(times.wall for times in self.times.values()), strict=True)
        return Times([sum(wall) for wall in walls], sum(times.cpu for times in self.times.values()))

    @property
    def shares(self) -> dict[str, float]:
        """Of each part in the sum of the medians."""
        total = sum(times.median for times in self.times.values())
        return {name: times.median / total for name, times in self.times.items()}


def measure(config: str, rounds: int, device: str, folder: Path) -> dict[str, Parts]:
    """By contender, the parts of a training step with one of CONFIGS."""
    run, batch = _prepare(CONFIGS[config], device, folder)
    moving = batch["moving"]
    ddf = run.network.field(moving, batch["fixed"]).detach().requires_grad_()
    runs: dict[str, Run] = {"network": _network(run, batch, ddf), "optimizer": run.optimizer.step}
    values: dict[str, float] = {}
    for name in NAMES:
        block, loss = _ours(run) if name == OURS else _monai(run)
        warped = block(moving, ddf).detach().requires_grad_()
        incoming = torch.ones_like(warped)
        values[name] = loss(warped, ddf, batch).item()
        runs[f"warp {name}"] = lambda block=block, incoming=incoming: torch.autograd.grad(
            block(moving, ddf), ddf, incoming
        )
        runs[f"loss {name}"] = lambda loss=loss, warped=warped: torch.autograd.grad(
            loss(warped, ddf, batch), (warped, ddf)
        )
    times = interleave(runs, rounds, device=device)
    return {
        name: Parts(
            tuple(moving.shape[2:]), {part: times.get(part) or times[f"{part} {name}"] for part in PARTS}, values[name]
        )
        for name in NAMES
    }


def _prepare(settings: list[str], device: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    from accelerate.utils import send_to_device

    from usreg.config import load_config
    from usreg.training import prepare_run

    run = prepare_run(load_config(None, [*settings, *quick_settings(device, folder, amp=False)]))
    run.model.train()
    return run, send_to_device(next(run.train.epoch()), run.accelerator.device)


def _network(run: Any, batch: dict[str, Any], ddf: torch.Tensor) -> Run:
    incoming = torch.ones_like(ddf)

    def step() -> None:
        run.optimizer.zero_grad()
        run.network.field(batch["moving"], batch["fixed"]).backward(incoming)

    return step


def _ours(run: Any) -> tuple[Callable[..., torch.Tensor], Loss]:
    from usreg.models.warp import warp

    return warp, run.loss_call


def _monai(run: Any) -> tuple[Callable[..., torch.Tensor], Loss]:
    """MONAI's ``Warp``, and the terms of the config's loss by MONAI's classes and torch."""
    from monai.networks.blocks import Warp

    with third_party_warnings_ignored():
        block = Warp()
    lncc = monai_lncc()
    smoothness = finite_differences(central=False)  # MONAI has central differences only
    ours = run.loss_call.loss

    def loss(warped: torch.Tensor, ddf: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        total = lncc(warped, batch["fixed"]) + ours.smooth_weight * smoothness(ddf)
        weight = getattr(ours, "dvf_weight", None)
        return total if weight is None else total + weight * torch.nn.functional.mse_loss(ddf, batch["dvf"])

    return block, loss
