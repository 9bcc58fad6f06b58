"""Loading: batches whose order depends only on the seed and the epoch, so that a resumed run sees the same ones."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import DataError
from ..io.header import one_line

EPOCH_STRIDE = 1_000_003
"""Separates the random streams of (seed, epoch) pairs: a prime, so that near seeds and epochs do not meet."""


class EpochBatches(Sampler[list[int]]):
    """Batches of sample indices of one process.

    Shuffled by (seed, epoch) when asked to; process ``rank`` takes every ``world``-th batch. In training all processes
    take equally many, the first batches being used twice where they do not divide; in validation no sample is repeated.
    The order depends neither on the batch size nor on the number of processes, so that a place in it is a number of
    samples.

    Args:
        size: number of samples.
        batch_size: samples per batch; the last batch may be smaller.
        seed: seed of the order; None keeps the samples in order, each exactly once.
        rank: this process, from 0.
        world: number of processes.
        counting: count on from epoch to epoch: sample i of epoch e is ``e * size + i``.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int | None, rank: int = 0, world: int = 1, counting: bool = False
    ) -> None:
        self.counting = counting
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many samples of its order all processes together are through with."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.size))
        first_number = self.epoch * self.size if self.counting else 0
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * EPOCH_STRIDE + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        order = [first_number + index for index in order]
        batches = self._cut(order[self.start :])
        if self.seed is not None:
            first = self._cut(order)
            batches += [first[i % len(first)] for i in range(-len(batches) % self.world)]
        yield from batches[self.rank :: self.world]

    def _cut(self, samples: list[int]) -> list[list[int]]:
        return [samples[i : i + self.batch_size] for i in range(0, len(samples), self.batch_size)]

    def __len__(self) -> int:
        """Number of batches of a whole epoch in this process."""
        return self.left(0)

    @property
    def rounds(self) -> int:
        """The most batches of a whole epoch that any process has."""
        return -(-self.size // (self.batch_size * self.world))

    def left(self, start: int) -> int:
        """Number of batches of this process behind the first ``start`` samples of an epoch."""
        batches = -(-(self.size - start) // self.batch_size)
        if self.seed is not None:
            return -(-batches // self.world)
        return len(range(self.rank, batches, self.world))


DEAD_WORKER = "DataLoader worker (pid"
"""How torch begins the message about a worker that is gone."""


class Batches:
    """The batches of a dataset for one process, epoch by epoch.

    Args:
        dataset: samples by index.
        sampler: which of them form this process' batches.
        collate: makes a batch of a list of samples.
        num_workers: loading processes; 0 loads in this one.
        pin_memory: page-locked batches, for quicker transfers to a GPU.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochBatches,
        collate: Callable[[list[Any]], dict[str, Any]],
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self.sampler = sampler
        # Of its own, for the workers' seeds: those would otherwise be drawn from torch's global generator, and a run
        # resumed inside an epoch draws them once more than an uninterrupted one.
        self.generator = torch.Generator()
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=min(num_workers, len(sampler)),
            pin_memory=pin_memory,
            generator=self.generator,
            persistent_workers=min(num_workers, len(sampler)) > 0,
            worker_init_fn=_leave_interrupts_to_the_main_process,
        )

    @property
    def dataset(self) -> Dataset[Any]:
        """The samples."""
        return self.loader.dataset

    @property
    def num_samples(self) -> int:
        """Number of samples, over all processes."""
        return len(cast(Sized, self.loader.dataset))

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[dict[str, Any]]:
        """The batches of an epoch of this process, without the first ``start`` samples of all processes.

        Raises:
            DataError: while loading: a worker process died, or a sample cannot be used.
        """
        self.sampler.set_epoch(epoch, start)
        self.generator.manual_seed((self.sampler.seed or 0) * EPOCH_STRIDE + epoch)
        if not self.sampler.left(start):
            return
        try:
            yield from self.loader
        except RuntimeError as error:
            if not str(error).startswith(DEAD_WORKER):
                raise
            raise DataError(
                f"a process that loads data died ({one_line(error)}). Often the system ended it for want of memory: "
                "try fewer training.num_workers, or training.num_workers=0, which loads in the main process"
            ) from error

    def __len__(self) -> int:
        """Number of batches of a whole epoch in this process."""
        return len(self.sampler)


def _leave_interrupts_to_the_main_process(_: int) -> None:
    """Ctrl-C reaches the workers too; the main process still needs them to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
