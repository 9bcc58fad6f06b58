"""The order in which several processes take the files of the tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


@pytest.fixture
def conftest(pytestconfig: pytest.Config) -> object:
    return pytestconfig.pluginmanager.get_plugin(str(CONFTEST))


def test_the_longest_files_come_first_and_others_stay_in_order(conftest: object) -> None:
    longest = [CONFTEST.parent / name for name in conftest.LONGEST_FIRST]
    assert all(path.is_file() for path in longest)
    others = [CONFTEST.with_name(name) for name in ("test_z.py", "test_a.py")]
    items = [SimpleNamespace(path=path) for path in (*others, *reversed(longest), longest[0])]
    conftest.pytest_collection_modifyitems(SimpleNamespace(), items)
    assert [item.path for item in items] == [*others, *reversed(longest), longest[0]]  # in one process
    conftest.pytest_collection_modifyitems(SimpleNamespace(workerinput={}), items)
    assert [item.path for item in items] == [longest[0], *longest, *others]
