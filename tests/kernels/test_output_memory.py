"""The memory of the CPU library's large outputs, which is used again."""

from __future__ import annotations

import copy
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref

import pytest
import torch

import usreg_kernels as uk
from usreg_kernels import library

pytestmark = pytest.mark.skipif(
    library.reason("cpu") is not None
    or not sys.platform.startswith("linux")
    or tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11)
    or os.environ.get("USREG_KEEP_MEMORY") == "0",
    reason="needs the CPU library, Linux, torch 2.11 and no USREG_KEEP_MEMORY=0",
)

LARGE = (1, 3, 80, 80, 80)
"""6 MB in float32."""

RESIDENT = """
import os, torch, usreg_kernels as uk

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def smooth(size):
    return uk.gaussian_smooth(torch.ones(1, 3, *size), 1.0)

smooth((40, 40, 40))
"""


def field(seed: int = 0) -> torch.Tensor:
    return torch.rand(LARGE, generator=torch.Generator().manual_seed(seed))


def smooth(x: torch.Tensor) -> torch.Tensor:
    return uk.gaussian_smooth(x, 1.0)


def printed(code: str, **environment: str) -> list[float]:
    """The numbers that a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(number) for number in done.stdout.split()]


def test_an_output_lies_where_one_lay_that_nobody_looks_at() -> None:
    x, other = field(), field(1)
    expected = smooth(x.double()).float()
    before = smooth(other)
    place = before.data_ptr()
    del before
    found = smooth(x)
    assert found.data_ptr() == place
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_view_an_array_and_a_graph_keep_their_memory() -> None:
    x = field()
    view = smooth(x)[0, 1, 7]
    array = smooth(x).numpy()
    leaf = field(1).requires_grad_()
    graph = smooth(leaf).square().sum()
    kept = view.clone(), array.copy()
    for seed in range(4):
        smooth(field(seed))
    assert torch.equal(view, kept[0])
    assert (array == kept[1]).all()
    (found,) = torch.autograd.grad(graph, leaf)
    (wanted,) = torch.autograd.grad(smooth(leaf).square().sum(), leaf)
    assert torch.equal(found, wanted)


def test_a_tensor_is_freed_when_nobody_looks_at_it() -> None:
    output = smooth(field())
    alive = weakref.ref(output)
    del output
    assert alive() is None


def test_what_is_kept_and_used_is_never_more_than_what_was_in_use_at_once() -> None:
    """Ten sizes of 24 to 36 MB, one after the other; then two of one size at once, which both stay."""
    before, after = printed(
        "before = resident()\nfor extent in range(200, 300, 10): smooth((100, 100, extent))\nprint(before, resident())"
    )
    assert after - before < 110  # the sum of all is 300
    before, after = printed(
        "before = resident()\n"
        "both = [smooth((100, 100, 300)), smooth((100, 100, 300))]\n"
        "del both\n"
        "print(before, resident())"
    )
    assert after - before > 60


def test_at_most_512_mib_are_kept() -> None:
    before, after = printed(
        "before = resident()\nmany = [smooth((100, 100, 300)) for _ in range(20)]\ndel many\nprint(before, resident())"
    )
    assert 450 < after - before < 600


def test_what_is_kept_can_be_given_back() -> None:
    before, after = printed(
        "from usreg_kernels.memory import free_kept_memory\nbefore = resident()\n"
        "many = [smooth((100, 100, 300)) for _ in range(4)]\ndel many\nfree_kept_memory()\nprint(before, resident())"
    )
    assert after - before < 40


def test_a_variable_turns_it_off() -> None:
    before, after = printed(
        "before = resident()\nmany = [smooth((100, 100, 300)) for _ in range(4)]\ndel many\nprint(before, resident())",
        USREG_KEEP_MEMORY="0",
    )
    assert after - before < 40


def test_several_threads_get_different_memory() -> None:
    inputs = [field(seed) for seed in range(4)]
    expected = [smooth(x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            first = smooth(inputs[index])
            second = smooth(first)
            if not torch.equal(first, expected[index]) or second.data_ptr() == first.data_ptr():
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def child(x: torch.Tensor, connection: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    connection.send([smooth(x).sum().item(), smooth(x).sum().item()])


def test_a_process_that_was_forked_goes_on() -> None:
    x = field()
    kept = smooth(x)
    expected = [smooth(x).sum().item()] * 2
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    torch.set_num_threads(1)
    process = context.Process(target=child, args=(x, theirs))
    process.start()
    assert ours.poll(60)
    found = ours.recv()
    process.join()
    assert found == pytest.approx(expected, rel=1e-6)
    assert torch.equal(kept, smooth(x))


def test_an_output_does_what_other_tensors_do() -> None:
    x = field()
    expected = smooth(x).clone()
    with torch.inference_mode():
        assert smooth(x).is_inference()
    output = smooth(x)
    assert output.is_contiguous()
    assert output._version == 0
    assert torch.equal(copy.deepcopy(output), expected)
    assert torch.equal(output.share_memory_(), expected)
    assert output.is_shared()
    image, still = x.half(), torch.zeros(LARGE)
    assert torch.equal(uk.warp(image, still), image)
    assert torch.equal(smooth(x)[:, :, ::2].add_(1), expected[:, :, ::2] + 1)
