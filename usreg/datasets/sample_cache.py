"""Samples kept in memory, up to a number of bytes."""

from __future__ import annotations

from torch.utils.data import get_worker_info

from .utils import Sample


class SampleCache:
    """Samples by index, up to a number of bytes; what no longer fits is not kept. A pickled cache arrives empty."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._samples: dict[int, Sample] = {}

    def get(self, index: int) -> Sample | None:
        """The sample of this index, None if it is not kept."""
        return self._samples.get(index)

    def put(self, index: int, sample: Sample) -> None:
        """Keep the sample if there is room for it."""
        worker = get_worker_info()
        size = sum(getattr(value, "nbytes", 0) for value in sample.values())
        if self._used + size <= self._limit // (worker.num_workers if worker else 1):
            self._samples[index] = sample
            self._used += size

    def __reduce__(self) -> tuple[type[SampleCache], tuple[int]]:
        return SampleCache, (self._limit,)  # a spawned worker reads what it needs instead of getting everything sent
