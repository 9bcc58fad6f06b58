"""Trains in a child process that is killed again and again, then to an end; and once without any kill.

Run as ``python killed_runs.py``, in an empty folder; ``test_training_killed.py`` compares what it leaves. The libraries
are imported once, before the children are forked: that takes longer than the training.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from torch import nn

from usreg.config import load_config
from usreg.models import register_model
from usreg.models.warp import warp
from usreg.training import Reporter, Trainer, load_checkpoint, prepare_run
from usreg.training.console import make_console

KILLS = 20
ENOUGH = 10_000
"""Epochs: more than a child can train before it is killed."""

CONFIG = """\
image_size: [8, 8, 8]
device: cpu
tensorboard: {enabled: false}
train_dataset: {name: deepreg_synthetic, num_samples: 6}
val_dataset: {name: deepreg_synthetic, num_samples: 2}
model: {name: restless}
loss: {name: lncc_dvf, kernel_size: 3}
optimizer: {lr: 1e-3}
training: {epochs: 1, batch_size: 2, num_workers: 0, save_dir: run}
"""


@register_model("restless")
class Restless(nn.Module):
    """Batch normalisation and dropout: state beside the weights, and a use of the random generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.5), nn.Conv3d(4, 3, 1))

    def forward(self, moving, fixed):
        ddf = self.net(torch.cat([moving, fixed], dim=1))
        return warp(moving, ddf), ddf


def start(*overrides: str) -> int:
    """A child that trains; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        Trainer(prepare_run(load_config("tiny.yaml", overrides)), Reporter(make_console(quiet=True))).fit()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def epochs_done() -> int:
    """Complete epochs of the newest run, 0 where there is no checkpoint."""
    files = sorted(Path().glob("run*/last.pt"), key=lambda path: path.stat().st_mtime_ns)
    return load_checkpoint(files[-1])["progress"]["epoch"] if files else 0


def main() -> None:
    Path("tiny.yaml").write_text(CONFIG)
    delays = random.Random(int(sys.argv[1]))
    done = [0]
    for _ in range(KILLS):
        child = start("training.resume=auto", f"training.epochs={ENOUGH}")
        before = time.monotonic()
        while time.monotonic() - before < 60 and not any(Path().glob("run*/config.yaml")):
            time.sleep(0.005)
        time.sleep(delays.uniform(0.05, 0.5))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        done.append(epochs_done())
    epochs = f"training.epochs={done[-1] + 1}"
    for child in (start("training.resume=auto", epochs), start("training.save_dir=whole", epochs)):
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(json.dumps(done))


if __name__ == "__main__":
    main()
