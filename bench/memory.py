"""How much memory a run takes beyond what was there before it, its gradient included."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import time
from pathlib import Path

from bench import gpu
from bench.gpu import Run
from usreg_kernels.memory import free_kept_memory

_PROCESS = Path("/proc/self")
_STATUS = "/proc/{process}/status"
_RESET_PEAK = "5"  # of clear_refs: the high-water mark of resident memory becomes the present size


def peak_extra_bytes(run: Run, device: str) -> tuple[int | None, float]:
    """The most memory that a run holds at a time, beyond what was held before, and the seconds that it takes.

    On a GPU, what torch's allocator gives out. On a CPU, resident memory as Linux counts it: all of the process,
    scratch memory of kernels included, after what freed memory the C library and ours keep was handed back; None where
    that cannot be known.
    """
    gc.collect()
    if device == "cuda":
        start = time.perf_counter()
        most = gpu.most_memory(run)
        return most, time.perf_counter() - start
    if not _reset_peak():
        return None, _seconds(run)
    before = _counted("VmRSS")
    seconds = _seconds(run)
    return max(0, _counted("VmHWM") - before), seconds


def resident(process: int) -> int | None:
    """The bytes of memory that a process holds now; None where the system does not say, or the process has ended."""
    try:
        return _counted("VmRSS", process)
    except OSError:  # ProcessLookupError is one
        return None


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _reset_peak() -> bool:
    """Reset the high-water mark, if that is possible."""
    if sys.platform != "linux":
        return False
    free_kept_memory()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except (AttributeError, OSError):  # another C library; a container that does not allow it
        return False
    return True


def _counted(counter: str, process: int | str = "self") -> int:
    found = re.search(rf"^{counter}:\s+(\d+) kB", Path(_STATUS.format(process=process)).read_text(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"process {process} has ended, or has no {counter}")
    return 1024 * int(found.group(1))
