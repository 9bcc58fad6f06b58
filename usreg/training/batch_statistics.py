"""Batch normalisation of several processes: its statistics are those of the samples of all of them.

So a step of two processes with one sample each is that of one process with two. On GPUs PyTorch's ``SyncBatchNorm``
does this. It refuses CPUs, where a layer gets a class of this module. Names of weights stay as they are.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_batch_statistics(network: nn.Module, device: torch.device) -> None:
    """Let the layers of batch normalisation of a network take the samples of all processes together, in training.

    Values and gradients are then those of one process that has all samples, to rounding. In every such layer each
    process waits for the others, so that all must take equally many steps.

    Args:
        network: changed in place. Call this before a parallel wrapper gets the network.
        device: where the network will be trained.
    """
    if device.type != "cpu":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, _Shared):
            layer.__class__ = _shared(type(layer))  # type: ignore[arg-type]  # "Module has no hash"


class _Shared(_BatchNorm):
    """Mixed into the class of a layer, in front of it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # named as in PyTorch's
        """The input, normalised by mean and variance over the samples of all processes."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [0, *range(2, input.dim())]
        number = input.numel() // input.shape[1]
        own_variance, own_mean = torch.var_mean(input, axes, correction=0)
        sums = _SumOfProcesses.apply(torch.cat([number * own_mean, own_mean.new_tensor([number])]))
        total = sums[-1]
        mean = sums[:-1] / total
        variance = _SumOfProcesses.apply(number * (own_variance + (own_mean - mean).square())) / total
        self._follow(mean.detach(), variance.detach() * total / (total - 1))
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        shape = [1, -1, *[1] * (input.dim() - 2)]
        return torch.addcmul(shift.view(shape), input, scale.view(shape))

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Move the running statistics on, as PyTorch does: by ``momentum``, or as a plain mean where it is None."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


@functools.cache
def _shared(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(f"Shared{kind.__name__}", (_Shared, kind), {})


class _SumOfProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes. So is its gradient: each process' value went into the sums of all."""

    @staticmethod
    def forward(_: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> Any:
        return _SumOfProcesses.apply(gradient)
