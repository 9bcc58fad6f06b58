"""Gradient smoothness: our backends against everything that a user would pick instead."""

OP = "gradient_smoothness"


def test_speed(show_speed, case, contender) -> None:
    show_speed(case, contender)
