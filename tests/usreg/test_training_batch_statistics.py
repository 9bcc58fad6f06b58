"""Batch normalisation over the samples of several processes."""

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from usreg.models.checkpointing import checkpoint_parts
from usreg.training.batch_statistics import share_batch_statistics

SIZES = (3, 1)
"""Samples of each process."""


def network(checkpointed):
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv3d(2, 4, 3), nn.Sequential(nn.BatchNorm3d(4), nn.Tanh()), nn.Conv3d(4, 3, 1),
        nn.BatchNorm3d(3, momentum=None), nn.InstanceNorm3d(3), nn.Flatten(2), nn.BatchNorm1d(3, affine=False),
    ).double()  # fmt: skip
    if checkpointed:
        checkpoint_parts([made[1]])
    return made


def images():
    return torch.randn(2, sum(SIZES), 2, 6, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train(module, batches, weight):
    """Two steps' gradients and what the layers keep; ``weight`` is that of the batch in the mean over all samples."""
    for batch in batches:
        (weight * module(batch).sin().square().sum((1, 2)).mean()).backward()
    return {
        "gradients": [parameter.grad for parameter in module.parameters()],
        "state": {name: value for name, value in module.state_dict().items() if "running" in name or "num" in name},
    }


def one_of_two(rank, folder, checkpointed):
    """A process that has its share of the samples."""
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    module = network(checkpointed)
    share_batch_statistics(module, torch.device("cpu"))
    share_batch_statistics(module, torch.device("cpu"))  # the second time changes nothing
    module = copy.deepcopy(module)
    first = sum(SIZES[:rank])
    found = train(module, images()[:, first : first + SIZES[rank]], SIZES[rank] / sum(SIZES))
    for gradient in found["gradients"]:
        distributed.all_reduce(gradient)
    with torch.no_grad():
        found["evaluated"] = module.eval()(images()[0][:1]) if rank else None  # in one process
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()
    os._exit(0)  # what gloo leaves running has been seen to abort a process that ends as usual, one time in forty


@pytest.mark.parametrize("checkpointed", [False, True])
def test_two_processes_have_the_statistics_of_one(tmp_path, checkpointed):
    """Values, gradients and running statistics, with batches of two sizes; in evaluation nobody waits for the other."""
    multiprocessing.spawn(one_of_two, (str(tmp_path), checkpointed), nprocs=2)
    plain = network(checkpointed=False)
    wanted = train(plain, images(), 1.0)
    found = [torch.load(Path(tmp_path) / f"{rank}.pt") for rank in (0, 1)]
    for own in found:
        torch.testing.assert_close(own["gradients"], wanted["gradients"], rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(own["state"], wanted["state"], rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(found[1]["evaluated"], plain.eval()(images()[0][:1]), rtol=1e-11, atol=1e-12)


def test_on_a_gpu_the_layers_are_those_of_pytorch():
    """They refuse CPUs, so that only their kind and their weights are seen here."""
    module = network(checkpointed=False)
    before = module.state_dict(keep_vars=True)
    share_batch_statistics(module, torch.device("cuda", 0))
    assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()) == 3
    after = module.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
