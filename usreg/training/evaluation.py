"""Validation: loss and metrics of the model beside the metrics of the identity field."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, send_to_device
from torch import nn

from ..losses.call import LossCall
from ..metrics import MetricTable, evaluate_metrics, identity_inputs, model_inputs
from .batches import Batches
from .interrupts import Stopped, StopRequest
from .nonfinite import nonfinite


@dataclass(frozen=True)
class Evaluation:
    """What a validation found.

    Attributes:
        loss: mean loss over the samples; None where every batch was skipped.
        metrics: means by name; None where the dataset does not give a metric's inputs.
        identity: the same for a field of zeros.
        skipped: batches left out of loss and metrics for a NaN or Inf in inputs or outputs.
        terms: means of the loss's terms by name.
        lost: by metric, how many of its values the identity has and the model has not, where there are such: the warp
            lost a structure, which has no surface distance then. A mean over the rest may look better for it.
    """

    loss: float | None
    metrics: dict[str, float | None]
    identity: dict[str, float | None]
    skipped: int
    terms: dict[str, float] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """A metric by its name, or ``val_loss``; None where it is absent or was not computed."""
        return self.loss if metric == "val_loss" else self.metrics.get(metric)


class Evaluator:
    """Validates a model on a fixed set of batches; the identity field's metrics are computed the first time only.

    Args:
        accelerator: the processes that share the batches.
        model: the network itself, not its parallel wrapper: processes may have different numbers of batches.
        loss_call: the loss.
        batches: the validation batches of this process.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, loss_call: LossCall, batches: Batches) -> None:
        self.accelerator, self.model, self.loss_call, self.batches = accelerator, model, loss_call, batches
        self._identity: MetricTable | None = None

    @torch.no_grad()
    def run(self, stop: StopRequest | None = None, without: Collection[str] = ()) -> Evaluation:
        """Validate on all processes together; every one of them gets the result.

        Args:
            stop: looked at before every batch.
            without: metrics that are left out.

        Raises:
            Stopped: a process was asked to stop.
        """
        losses = [self.loss_call.loss] if isinstance(self.loss_call.loss, nn.Module) else []
        if self.accelerator.num_processes > 1:
            # Else each process would use running statistics of its own.
            broadcast([buffer for module in (self.model, *losses) for buffer in module.buffers()])
        for module in (self.model, *losses):
            module.eval()
        records: list[dict[str, Any]] = []
        batches = self.batches.epoch()
        for _ in range(self.batches.sampler.rounds):
            self._look_at(stop)
            host_batch = next(batches, None)
            if host_batch is not None:
                batch = send_to_device(host_batch, self.accelerator.device, non_blocking=True)
                records.append(self._record(batch, without))
        return self._summary(gather_object(send_to_device(records, "cpu")))

    def _look_at(self, stop: StopRequest | None) -> None:
        """Raise Stopped in all processes where one of them was asked to stop."""
        asked = stop is not None and stop.requested
        if self.accelerator.num_processes > 1:
            asked = bool(self.accelerator.reduce(torch.tensor(float(asked), device=self.accelerator.device)) > 0)
        if asked:
            raise Stopped

    def _record(self, batch: dict[str, Any], without: Collection[str]) -> dict[str, Any]:
        """Loss and metrics of a batch; metrics left out where something is not finite."""
        warped, ddf = self.model(batch["moving"], batch["fixed"])
        loss, terms = self.loss_call.with_terms(warped, ddf, batch)
        record: dict[str, Any] = {"samples": len(warped), "loss": None, "terms": {}, "model": {}, "identity": {}}
        if not nonfinite(batch["moving"], batch["fixed"], warped, ddf, loss):
            record["loss"] = float(loss)
            record["terms"] = {name: float(term) for name, term in terms.items()}
            record["model"] = evaluate_metrics(model_inputs(batch, warped, ddf), without)
        if self._identity is None and not nonfinite(batch["moving"], batch["fixed"]):
            record["identity"] = evaluate_metrics(identity_inputs(batch))
        return record

    def _summary(self, records: list[dict[str, Any]]) -> Evaluation:
        table = MetricTable()
        for record in records:
            for column in ("model", "identity"):
                table.update(column, record[column])
        if self._identity is None:
            self._identity = table
        good = [record for record in records if record["loss"] is not None]
        samples = sum(record["samples"] for record in good)
        return Evaluation(
            loss=sum(r["loss"] * r["samples"] for r in good) / samples if samples else None,
            metrics=table.means("model"),
            identity=self._identity.means("identity"),
            skipped=len(records) - len(good),
            terms={name: sum(r["terms"][name] * r["samples"] for r in good) / samples for name in good[0]["terms"]}
            if good
            else {},
            lost=_lost(self._identity.counts("identity"), table.counts("model")) if len(good) == len(records) else {},
        )


def _lost(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: before[name] - count for name, count in after.items() if count < before.get(name, 0)}
