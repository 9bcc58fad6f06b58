"""The order of samples is a function of seed and epoch, and processes share it without gaps."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import pytest
import torch

from usreg.training.batches import Batches, EpochBatches


def order(sampler: EpochBatches, epoch: int, start: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch, start)
    return list(sampler)


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def test_shuffled_by_seed_and_epoch_alone():
    first, second = EpochBatches(10, 3, seed=1), EpochBatches(10, 3, seed=1)
    assert order(first, 4) == order(second, 4)
    assert order(first, 4) != order(first, 5)
    assert order(first, 4) != order(EpochBatches(10, 3, seed=2), 4)
    assert sorted(flat(order(first, 4))) == list(range(10))


def test_an_epoch_can_begin_at_any_batch():
    sampler = EpochBatches(10, 3, seed=1)
    assert order(sampler, 2, start=2) == order(sampler, 2)[2:]


@pytest.mark.parametrize(("size", "batch_size", "world"), [(10, 2, 2), (7, 2, 3), (1, 1, 4), (5, 8, 2)])
def test_processes_share_the_samples(size, batch_size, world):
    train = [EpochBatches(size, batch_size, 0, rank, world) for rank in range(world)]
    lengths = {len(order(s, 0)) for s in train}
    assert len(lengths) == 1  # else one would wait for the others for ever
    assert {len(s) for s in train} == lengths
    assert set(flat(batch for s in train for batch in order(s, 0))) == set(range(size))

    val = [EpochBatches(size, batch_size, None, rank, world) for rank in range(world)]
    assert sorted(flat(batch for s in val for batch in order(s, 0))) == list(range(size))  # each exactly once
    assert [len(s) for s in val] == [len(order(s, 0)) for s in val]


def test_loading_leaves_the_global_generator_alone():
    batches = Batches(list(range(6)), EpochBatches(6, 2, seed=0), lambda samples: {"x": samples}, 0, False)
    before = torch.get_rng_state()
    assert len([batch["x"] for batch in batches.epoch(0)]) == 3
    assert torch.equal(torch.get_rng_state(), before)
