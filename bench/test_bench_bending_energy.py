"""Bending energy: our backends against everything that a user would pick instead."""

OP = "bending_energy"


def test_speed(show_speed, case, contender) -> None:
    show_speed(case, contender)
