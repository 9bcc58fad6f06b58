"""The order of samples is a function of seed and epoch, and processes share it without gaps."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from itertools import chain

import pytest
import torch

from usreg.errors import DataError
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


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_can_begin_behind_any_step(world):
    for rank in range(world):
        sampler = EpochBatches(10, 3, seed=1, rank=rank, world=world)
        assert order(sampler, 2, start=3 * world) == order(sampler, 2)[1:]
        assert sampler.left(3 * world) == len(sampler) - 1


@pytest.mark.parametrize(("batch_size", "world"), [(1, 1), (4, 1), (2, 3), (5, 2)])
def test_the_rest_of_an_epoch_holds_what_the_beginning_did_not_whoever_takes_it(batch_size, world):
    done = flat(order(EpochBatches(11, 3, seed=1), 4))[:6]
    rest = [EpochBatches(11, batch_size, 1, rank, world) for rank in range(world)]
    taken = [order(sampler, 4, start=6) for sampler in rest]
    assert set(flat(chain.from_iterable(taken))) | set(done) == set(range(11))
    assert {len(batches) for batches in taken} == {rest[0].left(6)}
    if world == 1:
        assert sorted(flat(taken[0]) + done) == list(range(11))


def test_a_worker_that_dies_is_named(tmp_path):
    class Dying(list):
        def __getitem__(self, index):
            if index == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    batches = Batches(Dying(range(4)), EpochBatches(4, 1, seed=None), lambda samples: {"x": samples}, 1, False)
    with pytest.raises(DataError, match=r"a process that loads data died .*training\.num_workers"):
        list(batches.epoch(0))


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


def test_counting_goes_on_from_epoch_to_epoch() -> None:
    """In the same order, so that an augmented dataset knows the epoch, whatever process reads the sample."""
    plain, counting = (EpochBatches(5, 2, seed=1, counting=counting) for counting in (False, True))
    for epoch in range(3):
        for sampler in (plain, counting):
            sampler.set_epoch(epoch, start=1)
        assert [[number - 5 * epoch for number in batch] for batch in counting] == list(plain)
