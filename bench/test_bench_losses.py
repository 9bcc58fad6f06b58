"""Every loss: our backends against everything that a user would pick instead."""


def test_speed(show_speed, case, contender) -> None:
    show_speed(case, contender)
