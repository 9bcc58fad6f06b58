"""The keys of a run's configuration: their types, defaults and meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class WandbConfig:
    """Weights & Biases tracking; off unless enabled."""

    enabled: bool = False
    """Log the run to Weights & Biases."""
    project: str | None = None
    """The project's name there; the run's ``project`` when missing."""
    run_name: str | None = None
    """The run's name there; chosen by Weights & Biases when missing."""
    offline: bool = False
    """Write the log only to the run's folder, to be synchronised later."""


@dataclass
class TensorBoardConfig:
    """TensorBoard tracking, written under the run's folder; on unless disabled."""

    enabled: bool = True
    """Write TensorBoard event files."""


@dataclass
class OptimizerConfig:
    """The optimizer and its settings."""

    name: str = "Adam"
    """Adam or AdamW, in any case."""
    lr: float = MISSING
    """Learning rate, above 0; values above 1e-3 are known to be unstable and give a warning."""
    weight_decay: float = 0.0
    """Weight decay, 0 or more; decoupled from the gradient for AdamW, an L2 penalty for Adam."""


@dataclass
class TrainingConfig:
    """The loop: how long, how fast, where to."""

    epochs: int = MISSING
    """Passes over the training set, at least 1."""
    batch_size: int = MISSING
    """Samples per step, at least 1."""
    num_workers: int = 4
    """Processes that load data; 0 loads in the main process."""
    amp: bool = True
    """Mixed precision, on CUDA devices only."""
    amp_dtype: str = "float16"
    """Type of mixed precision: float16 (with loss scaling) or bfloat16."""
    val_every: int = 1
    """Validate after every so many epochs; 0 never validates."""
    seed: int = 42
    """Seed of the weights and of the order of the samples."""
    clip_grad_norm: float | None = 1.0
    """Largest L2 norm of the whole gradient; null clips nothing."""
    save_dir: str | None = None
    """The run's folder; runs/<project>/<time> when missing."""
    resume: str | None = None
    """A checkpoint to go on from: a path, or auto for last.pt of ``save_dir``."""
    max_steps: int | None = None
    """Stop after so many optimizer steps, whatever ``epochs`` says."""
    amp_init_scale: float | None = None
    """First loss scale of float16 training; torch's default when missing."""


@dataclass
class Config:
    """A whole run. Component sections are plain dictionaries: ``name`` plus the keys of that name's factory."""

    project: str | None = None
    """Label of the run, used in the name of its folder and by the trackers."""
    image_size: list[int] = MISSING
    """(D, H, W) in voxels, passed to the model, and to datasets that give no size of their own."""
    device: str | None = None
    """cuda, cuda:1, cpu...; chosen automatically when missing."""
    plugins: list[str] = field(default_factory=list)
    """Python modules imported first; they register the user's own losses, models, datasets and metrics."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""
    tensorboard: TensorBoardConfig = field(default_factory=TensorBoardConfig)
    """TensorBoard."""
    train_dataset: dict[str, Any] = MISSING
    """The training set."""
    val_dataset: dict[str, Any] = field(default_factory=dict)
    """The validation set; may be left out where ``training.val_every`` is 0."""
    model: dict[str, Any] = MISSING
    """The network that maps (moving, fixed) to (warped, ddf)."""
    loss: dict[str, Any] = MISSING
    """The loss that training minimises."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""
