"""Memory that loops lend to the outputs that follow."""

from __future__ import annotations

import threading

import pytest
import torch

import usreg_kernels as uk
from usreg_kernels import library
from usreg_kernels.lending import lending

needs_library = pytest.mark.skipif(library.reason("cpu") is not None, reason="the CPU library is not built")


def field(seed: int = 0, size: int = 9) -> torch.Tensor:
    return torch.rand(1, 3, size, 8, 7, generator=torch.Generator().manual_seed(seed))


@needs_library
def test_the_next_output_of_the_same_shape_lies_where_a_lent_tensor_lay() -> None:
    x, larger = field(), field(size=10)
    expected = uk.gaussian_smooth(x, 1.0)
    with lending() as lend:
        spare = field(1)
        place = spare.data_ptr()
        lend(spare)
        assert uk.gaussian_smooth(larger, 1.0).data_ptr() != place
        assert uk.gaussian_smooth(x.double(), 1.0).data_ptr() != place
        found = uk.gaussian_smooth(x, 1.0)
        again = uk.gaussian_smooth(x, 1.0)
    assert found.data_ptr() == place != again.data_ptr()
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)


@needs_library
def test_nothing_is_lent_after_the_block_or_to_other_threads() -> None:
    x, spare = field(), field(1)
    kept = spare.clone()

    def fail() -> None:
        with lending() as lend:
            lend(spare)
            thread = threading.Thread(target=lambda: uk.gaussian_smooth(x, 1.0))
            thread.start()
            thread.join()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    uk.gaussian_smooth(x, 1.0)
    assert torch.equal(spare, kept)


@needs_library
def test_gradients_and_compositions_take_lent_memory_too() -> None:
    image, ddf = torch.rand(1, 1, 9, 8, 7), field().requires_grad_()
    (expected,) = torch.autograd.grad(uk.warp(image, ddf).square().sum(), ddf)
    composed = uk.compose_ddf(ddf.detach(), ddf.detach())
    with lending() as lend:
        spares = [field(1), field(2)]
        places = [spare.data_ptr() for spare in spares]
        lend(spares[0])
        (gradient,) = torch.autograd.grad(uk.warp(image, ddf).square().sum(), ddf)
        lend(spares[1])
        both = uk.compose_ddf(ddf.detach(), ddf.detach())
    assert [gradient.data_ptr(), both.data_ptr()] == places
    assert torch.equal(gradient, expected)
    assert torch.equal(both, composed)


def test_what_cannot_be_lent_is_left_alone() -> None:
    """A strided tensor and one of another dtype; without the library, every tensor."""
    strided, double = field(1).transpose(2, 4), field().double()
    kept = strided.clone(), double.clone()
    with lending() as lend:
        lend(strided)
        lend(double)
        uk.gaussian_smooth(torch.rand(strided.shape), 1.0)
    assert torch.equal(strided, kept[0])
    assert torch.equal(double, kept[1])
