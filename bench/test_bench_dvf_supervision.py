"""DVF supervision: our backends against everything that a user would pick instead."""

OP = "dvf_supervision"


def test_speed(show_speed, case, contender) -> None:
    show_speed(case, contender)
