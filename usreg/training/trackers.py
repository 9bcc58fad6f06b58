"""Trackers: where scalars go besides metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..config import Config
from ..errors import UsageError
from .run_folder import TENSORBOARD


class Tracker(Protocol):
    """Takes scalars by name and step."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars of a step."""

    def close(self) -> None:
        """Write out what is pending."""


class TensorBoardTracker:
    """Event files under the run's folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / TENSORBOARD))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, folder: Path, config: Config, plain_config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=config.wandb.project or config.project or "usreg",
            name=config.wandb.run_name,
            mode="offline" if config.wandb.offline else "online",
            dir=str(folder),
            config=plain_config,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()


def check_trackers(config: Config) -> None:
    """Raise UsageError, with the command to install it, where an enabled tracker is not installed."""
    wanted = {
        "tensorboard": (config.tensorboard.enabled, "torch.utils.tensorboard", "usreg[train]"),
        "wandb": (config.wandb.enabled, "wandb", "usreg[wandb]"),
    }
    for section, (enabled, module, extra) in wanted.items():
        if enabled and not _importable(module):
            raise UsageError(
                f"{section}.enabled is true, but {section} is not installed. "
                f'Install it with: pip install "{extra}", or turn it off with {section}.enabled=false'
            )


def _importable(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def make_trackers(folder: Path, config: Config, plain_config: dict[str, Any]) -> list[Tracker]:
    """The trackers that the config enables; :func:`check_trackers` has passed."""
    trackers: list[Tracker] = []
    if config.tensorboard.enabled:
        trackers.append(TensorBoardTracker(folder))
    if config.wandb.enabled:
        trackers.append(WandbTracker(folder, config, plain_config))
    return trackers
