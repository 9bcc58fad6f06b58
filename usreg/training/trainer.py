"""The training loop. :meth:`Trainer.step` is the whole of a training step."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object, send_to_device

from ..errors import ConfigError, UsageError
from .checkpoints import EVERY, LAST, save_checkpoint, signature
from .console import Rate, Reporter, StepBar, duration, metrics_table
from .evaluation import Evaluation, Evaluator
from .interrupts import Stopped, StopRequest
from .nonfinite import RunningStatistics, StepReport, describe_skips, nonfinite, read_step
from .randomness import capture_random_state
from .setup import Run


class Trainer:
    """Trains a prepared run.

    Args:
        run: what :func:`usreg.training.setup.prepare_run` built.
        reporter: shows the course of the run; quiet in all processes but the main one.
    """

    def __init__(self, run: Run, reporter: Reporter) -> None:
        self.run, self.reporter = run, reporter
        self.progress = run.progress
        self.evaluator = (
            Evaluator(run.accelerator, run.evaluated, run.loss_call, run.val) if run.val is not None else None
        )
        self.statistics = RunningStatistics(run.network, run.loss)
        self.last_evaluation: Evaluation | None = None
        self._written = signature(run.folder / LAST)
        self.started, self._first_step = time.perf_counter(), self.progress.step

    def fit(self) -> None:
        """Train to the end.

        Raises:
            Stopped: on Ctrl-C or a termination request; last.pt was saved.
            UsageError: every batch of an epoch held a NaN or Inf.
        """
        with StopRequest() as stop, self.reporter.steps(self._total_steps(), self.progress.step) as bar:
            while not self._finished():
                rate = Rate()
                self._train_epoch(rate, stop, bar)
                self._end_epoch(rate, stop, bar)

    def step(self, batches: Sequence[dict[str, Any]], stop: StopRequest) -> StepReport:
        """One optimisation step on batches that are on the device; skipped where anything in them is NaN or Inf.

        The gradient of several batches is that of one batch of all their samples where the loss is a mean over samples.

        Args:
            batches: collated batches, each of which goes through the model by itself.
            stop: notes whether this process is asked to stop after this step.
        """
        run, accelerator = self.run, self.run.accelerator
        if accelerator.num_processes > 1:
            broadcast(list(run.loss.buffers()))  # a parallel wrapper does so with those of the network
        self.statistics.keep()
        samples = sum(len(batch["moving"]) for batch in batches)
        values: list[dict[str, torch.Tensor]] = []
        for number, batch in enumerate(batches):
            share = len(batch["moving"]) / samples
            with contextlib.nullcontext() if number == len(batches) - 1 else accelerator.no_sync(run.model):
                values.append(self._backward(batch, share))
        self._share_loss_gradients()
        norm = self._clip_gradients()

        inputs, outputs = (torch.stack([value.pop(flag) for value in values]).amax() for flag in ("inputs", "outputs"))
        sums = {name: torch.stack([value[name] for value in values]).sum() for name in values[0]}
        loss = sums.pop("loss")
        # The one host sync of a step.
        report = read_step(accelerator, loss, inputs, outputs, norm, sums, stop=stop.requested)
        scaler = accelerator.scaler
        if report.bad is None or (report.bad == "gradients" and scaler is not None):
            run.optimizer.step()  # with a scaler, an overflow of the gradients changes its scale and no weight
        else:
            self.statistics.restore()
            if scaler is not None:
                scaler.update(scaler.get_scale())  # forgets this step's gradients and keeps the scale
        run.optimizer.zero_grad(set_to_none=True)
        if report.bad is None:
            run.schedule.after_step()
            if run.average is not None:
                run.average.update(run.network)
        return report

    def _backward(self, batch: dict[str, Any], share: float) -> dict[str, torch.Tensor]:
        """Add the gradient of a batch's share of the loss; loss and terms by name, and flags of what is not finite."""
        run = self.run
        warped, ddf = run.model(batch["moving"], batch["fixed"])
        loss, terms = run.loss_call.with_terms(warped, ddf, batch)
        if not loss.requires_grad:
            raise ConfigError(
                f"the loss {type(run.loss).__name__} has no gradient with respect to the prediction, so that nothing "
                "would be trained: compute it with torch from warped or pred_dvf, without detach, no_grad or rounding"
            )
        run.accelerator.backward(loss if share == 1 else share * loss)
        found = {name: share * value.detach().float().reshape(()) for name, value in {**terms, "loss": loss}.items()}
        flags = {"inputs": (batch["moving"], batch["fixed"]), "outputs": (warped, ddf)}
        return found | {name: nonfinite(*tensors) for name, tensors in flags.items()}

    def _share_loss_gradients(self) -> None:
        """Average the gradients of the loss's own parameters over the processes: no parallel wrapper does."""
        accelerator = self.run.accelerator
        if accelerator.num_processes == 1:
            return
        for parameter in self.run.loss.parameters():
            if parameter.requires_grad:
                own = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                parameter.grad = accelerator.reduce(own, reduction="mean")

    def _clip_gradients(self) -> torch.Tensor:
        """Scale the gradients down to the largest norm allowed; the norm that they had."""
        limit = self.run.config.training.clip_grad_norm
        return self.run.accelerator.clip_grad_norm_(self.run.trained, math.inf if limit is None else limit)

    def _train_epoch(self, rate: Rate, stop: StopRequest, bar: StepBar) -> None:
        """The steps of an epoch, or what is left of them."""
        run, progress = self.run, self.progress
        run.model.train()
        run.loss.train()
        device, world = run.accelerator.device, run.accelerator.num_processes
        title = f"epoch {progress.epoch + 1}/{run.config.training.epochs}"
        for host_batches in self._loaded(progress.epoch, progress.samples):
            batches = [send_to_device(batch, device, non_blocking=True) for batch in host_batches]
            lr = run.schedule.lr
            report = self.step(batches, stop)
            progress.count(report, run.config.training.batch_size * world * len(batches))
            rate.add(sum(len(batch["moving"]) for batch in batches) * world)
            bar.update(title, report.loss, rate.value)
            if report.bad is None:
                terms = {f"train/step_{name}": value for name, value in report.terms.items()}
                self._track({"train/step_loss": report.loss, "train/lr": lr, **terms})
            if report.stop:
                self._save_trained()
                raise Stopped

    def _loaded(self, epoch: int, start: int) -> Iterator[list[dict[str, Any]]]:
        """The batches of each step; where one cannot be loaded, what was trained until then is saved first."""
        batches = self.run.train.epoch(epoch, start)
        while not self._out_of_steps():
            try:
                together = list(itertools.islice(batches, self.run.config.training.accumulate))
            except Exception:
                if self.run.accelerator.num_processes == 1:  # saving takes all processes, and the others go on
                    self._save_trained()
                raise
            if not together:
                return
            yield together

    def _end_epoch(self, rate: Rate, stop: StopRequest, bar: StepBar) -> None:
        """Save, validate where it is due, record, move on and save again.

        The first checkpoint holds the epoch's work, whatever happens to the validation; a run that is resumed from it
        validates first. The best ones are written while it stands, so that none of them is ever missing.
        """
        progress, training = self.progress, self.run.config.training
        samples_per_second = rate.value  # before validation takes its time
        self._check_trained()
        number = progress.epoch + 1
        last = self._out_of_steps() or (progress.complete and number == training.epochs)
        evaluation = None
        if self.evaluator is not None and (last or number % training.val_every == 0):
            progress.pending = True
            self._save_trained()
            bar.label(f"validating after epoch {number}")
            evaluation = self.last_evaluation = self.evaluator.run(stop, () if last else self._not_due())
            progress.pending = False
        self._record(number, samples_per_second, evaluation)
        self._show(number, samples_per_second, evaluation)
        names = []
        if evaluation is not None:
            names = [selection.file for selection in progress.note(evaluation, self.run.selections)]
            self.run.schedule.after_validation(evaluation)
        complete = progress.complete
        if complete:
            progress.next_epoch()
            if training.keep:
                names.append(EVERY.format(number))
        self._save(*names, LAST)
        if complete and training.keep and self.run.accelerator.is_main_process:
            for old in sorted(self.run.folder.glob(EVERY.replace("{:04d}", "*")))[: -training.keep]:
                old.unlink()
        if self._waited_enough():
            self.reporter.note(
                f"stopped early: {progress.waited} validations without a better {self.run.selections[0].metric} than "
                f"{progress.best.get(self.run.selections[0].metric):.4g}"
            )

    def _not_due(self) -> list[str]:
        """Metrics that the next validation leaves out."""
        every = self.run.config.training.metric_every
        return [name for name, times in every.items() if (self.progress.validations + 1) % times]

    def _waited_enough(self) -> bool:
        """Whether so many validations brought nothing better that the run ends."""
        patience = self.run.config.training.patience
        return patience is not None and self.progress.waited >= patience

    def _check_trained(self) -> None:
        """Stop where a whole epoch changed no weight: so will the next."""
        progress = self.progress
        searching = self.run.accelerator.scaler is not None and progress.epoch_skips["gradients"]
        last = self._out_of_steps() or progress.epoch + 1 == self.run.config.training.epochs
        if progress.loss_count or (searching and not (last and not progress.trained)):
            return
        raise UsageError(
            f"epoch {progress.epoch + 1} trained nothing: {describe_skips(progress.epoch_skips)}. NaN or Inf in the "
            "inputs: check the images of the dataset. In the outputs: try a lower optimizer.lr, training.amp=false, or "
            "a loss with larger smoothing terms. In the gradients: try training.amp_dtype=bfloat16"
        )

    def _record(self, epoch: int, rate: float, evaluation: Evaluation | None) -> None:
        """Write the epoch to metrics.csv and the trackers."""
        progress = self.progress
        skipped = sum(progress.epoch_skips.values())
        row: dict[str, float | int | None] = {
            "epoch": epoch, "step": progress.step, "train_loss": progress.train_loss, "val_loss": None,
            "lr": self.run.schedule.lr, "samples_per_second": rate, "skipped": skipped, "val_skipped": None,
        }  # fmt: skip
        row |= {f"train_{name}": value for name, value in progress.train_terms.items()}
        scalars = {"train/loss": progress.train_loss, "train/samples_per_second": rate, "train/skipped": skipped}
        if evaluation is not None:
            row |= {"val_loss": evaluation.loss, "val_skipped": evaluation.skipped}
            row |= {f"val_{name}": value for name, value in evaluation.terms.items()}
            scalars |= {"val/loss": evaluation.loss, **{f"val/{name}": v for name, v in evaluation.terms.items()}}
            for name, value in evaluation.metrics.items():
                row |= {name: value, f"identity_{name}": evaluation.identity.get(name)}
                scalars |= {f"val/{name}": value, f"identity/{name}": evaluation.identity.get(name)}
        if self.run.accelerator.is_main_process:
            self.run.metrics.add(row)
            self._track({name: value for name, value in scalars.items() if value is not None})

    def _show(self, epoch: int, rate: float, evaluation: Evaluation | None) -> None:
        """Print the epoch's line and, after a validation, its table."""
        progress = self.progress
        loss = "none" if progress.train_loss is None else f"{progress.train_loss:.4f}"
        skips = f"   {describe_skips(progress.epoch_skips)}" if any(progress.epoch_skips.values()) else ""
        terms = "".join(f"   {name} {value:.4f}" for name, value in progress.train_terms.items())
        line = f"epoch {epoch}/{self.run.config.training.epochs}   loss {loss}{terms}   {rate:.1f} samples/s{skips}"
        if not self.reporter.console.is_terminal:
            line += f"   {self._remaining()} left"
        (self.reporter.warn if skips else self.reporter.note)(line)
        if evaluation is None:
            return
        if evaluation.skipped:
            self.reporter.warn(f"validation: {evaluation.skipped} batches skipped (NaN or Inf)")
        self.reporter.console.print(metrics_table(f"validation after epoch {epoch}", evaluation))

    def _save_trained(self) -> None:
        """Write last.pt if any step changed a weight."""
        if self.progress.trained:
            self._save(LAST)

    def _save(self, *names: str) -> None:
        """Write checkpoints of the present state; all processes take part, the main one writes."""
        run = self.run
        random_states = gather_object([capture_random_state()])
        if not run.accelerator.is_main_process:
            return
        entries = {
            "model": run.network.state_dict(),
            "loss": run.loss.state_dict(),
            "scheduler": run.schedule.state_dict(),
            "ema": run.average.state_dict() if run.average is not None else None,
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler is not None else None,
            "progress": self.progress.plain(),
            "random": random_states,
            "config": run.plain_config,
        }
        self._check_own()
        for name in names:
            save_checkpoint(run.folder / name, entries)
        self._written = signature(run.folder / LAST)

    def _check_own(self) -> None:
        """Raise UsageError where another program wrote last.pt since this one did."""
        found = signature(self.run.folder / LAST)
        if found != self._written:
            raise UsageError(
                f"{self.run.folder / LAST} was written by another run, or removed, while this one trained; it is left "
                "as it is. Two runs cannot share a folder: end one of them, or give them a training.save_dir each"
            )

    def _track(self, scalars: dict[str, float]) -> None:
        for tracker in self.run.trackers:
            tracker.log(scalars, self.progress.step)

    def _total_steps(self) -> int:
        training, progress = self.run.config.training, self.progress
        left = (training.epochs - progress.epoch - 1) * self.run.steps_left(0)
        total = progress.step + left + self.run.steps_left(progress.samples)
        return total if training.max_steps is None else min(total, training.max_steps)

    def _out_of_steps(self) -> bool:
        limit = self.run.config.training.max_steps
        return limit is not None and self.progress.step >= limit

    def _finished(self) -> bool:
        if self.progress.pending:
            return False
        return self._out_of_steps() or self._waited_enough() or self.progress.epoch >= self.run.config.training.epochs

    def _remaining(self) -> str:
        """Time left, judged by the steps of this session."""
        done = self.progress.step - self._first_step
        left = self._total_steps() - self.progress.step
        return duration((time.perf_counter() - self.started) * left / max(done, 1))
