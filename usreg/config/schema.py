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
    """An optimizer of torch.optim, in any case."""
    lr: float = MISSING
    """Learning rate, above 0; values above 1e-3 are known to be unstable and give a warning."""
    weight_decay: float = 0.0
    """Weight decay, 0 or more; decoupled from the gradient for AdamW, an L2 penalty for Adam."""
    options: dict[str, Any] = field(default_factory=dict)
    """The optimizer's other keys, such as ``momentum``; they may also stand in the section itself."""


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
    accumulate: int = 1
    """Batches whose gradients a step takes together, at least 1."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then validated and saved; null for none."""
    freeze: list[str] = field(default_factory=list)
    """Patterns of the names of weights that are not trained, such as ``network.encode*``."""
    init_from: str | None = None
    """A checkpoint, or a run's folder, whose weights the model begins with."""
    best: list[str] = field(default_factory=lambda: ["val_loss", "epe"])
    """Metrics, each of which keeps the checkpoint that is best by it; ``metric:max`` or ``metric:min``."""
    keep: int = 0
    """Checkpoints of the newest so many epochs to keep beside last.pt."""
    patience: int | None = None
    """Stop after so many validations in a row without a better value of the first of ``best``; null never."""
    metric_every: dict[str, int] = field(default_factory=dict)
    """Metrics that are computed in every so many validations only, and in the last: ``{hd95: 5}``."""
    save_dir: str | None = None
    """The run's folder; runs/<project>/<time> when missing."""
    resume: str | None = None
    """A checkpoint to go on from: a path, or auto for last.pt of ``save_dir``."""
    max_steps: int | None = None
    """Stop after so many optimizer steps, whatever ``epochs`` says."""
    amp_init_scale: float | None = None
    """First loss scale of float16 training; torch's default when missing."""


@dataclass
class AugmentationConfig:
    """Random changes of the training samples; nothing by default."""

    probability: float = 1.0
    """Share of the samples that are changed."""
    separate: bool = False
    """Give the moving image a map and a deformation of its own, in place of those of the fixed one."""
    flip: list[int] = field(default_factory=list)
    """Axes (0 = z, 1 = y, 2 = x) along which both images are mirrored in half of the samples."""
    rotation: float = 0.0
    """Largest angle about each axis, in degrees."""
    scaling: float = 0.0
    """Largest factor along each axis, beyond 1: 0.1 is from 1 / 1.1 to 1.1."""
    translation: float = 0.0
    """Largest shift along each axis, in voxels."""
    deformation: float = 0.0
    """Largest displacement of a control point of a smooth deformation along each axis, in voxels."""
    deformation_spacing: float = 32.0
    """Distance of its control points, in voxels; at least four times ``deformation``."""
    gamma: float = 0.0
    """Largest power of the intensities, beyond 1: 0.3 is from 1 / 1.3 to 1.3; for each image by itself."""
    noise_std: float = 0.0
    """Standard deviation of Gaussian noise."""


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
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random changes of the training samples."""
    model: dict[str, Any] = MISSING
    """The network that maps (moving, fixed) to (warped, ddf)."""
    loss: dict[str, Any] = MISSING
    """The loss that training minimises."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """The schedule of the learning rate; without it, the rate stays."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""
