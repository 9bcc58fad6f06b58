"""The comparer itself: it must fail where it should."""

from __future__ import annotations

import pytest
import torch
from kernels.compare import assert_close, relative_error


def test_relative_error_is_the_norm_of_the_difference_over_the_norm() -> None:
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])) == pytest.approx(0.75)
    assert relative_error(torch.tensor([3.0]), torch.tensor([0.0])) == 3.0


@pytest.mark.parametrize("wrong", [1.1, -1.0, float("nan"), float("inf")])
def test_a_wrong_value_fails(wrong: float) -> None:
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(torch.tensor([wrong, 1.0]), torch.ones(2), 1e-3)


def test_another_shape_fails() -> None:
    with pytest.raises(AssertionError):
        assert_close(torch.ones(1), torch.ones(()), 1e-3)


def test_overflow_must_be_the_same_infinity() -> None:
    expected = torch.tensor([1e6, 1.0], dtype=torch.float64)
    assert_close(torch.tensor([float("inf"), 1.0], dtype=torch.float16), expected, 1e-3)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([-float("inf"), 1.0], dtype=torch.float16), expected, 1e-3)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([65504.0, 1.0], dtype=torch.float16), expected, 1e-3)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([float("inf"), 2.0], dtype=torch.float16), expected, 1e-3)
