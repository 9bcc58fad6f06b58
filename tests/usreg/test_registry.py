"""The registry: duplicates, built-ins, unknown names, what a factory accepts, how a section becomes a call."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from usreg.errors import ConfigError, UsageError
from usreg.registry import Registry, accepted_by


@pytest.fixture
def registry() -> Registry[dict[str, Any]]:
    made: Registry[dict[str, Any]] = Registry("loss")

    @made.register("plain")
    def make_plain(weight: float = 1.0, **_: object) -> dict[str, Any]:
        return {"weight": weight}

    @made.register("open")
    def make_open(size: Sequence[int], **kwargs: object) -> dict[str, Any]:
        return {"size": size, **kwargs}

    return made


def test_register_returns_the_factory_and_is_a_dictionary(registry: Registry[Any]) -> None:
    def factory() -> dict[str, Any]:
        return {}

    assert registry.register("mine")(factory) is factory
    assert registry["mine"] is factory
    assert isinstance(registry, dict)
    assert registry.register("mine")(factory) is factory  # the same object again changes nothing


def test_duplicate_is_refused_and_names_both(registry: Registry[Any]) -> None:
    def make_other() -> None: ...

    with pytest.raises(ValueError, match=r"'plain' is already registered by .*make_plain; .*make_other needs"):
        registry.register("plain")(make_other)
    assert registry["plain"].__name__ == "make_plain"


def test_builtin_is_replaced_once_with_a_warning(registry: Registry[Any], caplog: pytest.LogCaptureFixture) -> None:
    def make_mine() -> None: ...

    def make_another() -> None: ...

    registry.mark_builtins()
    with caplog.at_level(logging.WARNING, "usreg"):
        registry.register("plain")(make_mine)
    assert "make_mine replaces the built-in" in caplog.text
    assert "make_plain" in caplog.text
    with pytest.raises(ValueError, match="already registered"):
        registry.register("plain")(make_another)


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_is_needed(registry: Registry[Any], name: Any) -> None:
    with pytest.raises(TypeError, match="register_loss"):
        registry.register(name)


def test_decorator_without_a_name_is_explained(registry: Registry[Any]) -> None:
    with pytest.raises(TypeError, match=r'@register_loss\("my_loss"\)'):

        @registry.register
        def make_nameless() -> None: ...


def test_unknown_name_lists_known_and_nearest(registry: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match=r"unknown loss 'plian'. Did you mean 'plain'\? Known: open, plain.*plugins"):
        registry["plian"]
    assert registry.get("plian") is None
    assert issubclass(ConfigError, UsageError)
    assert issubclass(ConfigError, ValueError)


def test_build_merges_params_under_the_top_level(registry: Registry[Any]) -> None:
    assert registry.build({"name": "plain", "params": {"weight": 3.0}}) == {"weight": 3.0}
    assert registry.build({"name": "plain", "params": {"weight": 3.0}, "weight": 2.0}) == {"weight": 2.0}
    assert registry.build({"name": "plain", "params": None, "unknown": 1}) == {"weight": 1.0}
    with pytest.raises(ConfigError, match=r"loss\.params must be a section"):
        registry.build({"name": "plain", "params": 3})


def test_params_of_the_factory_itself_are_left_alone() -> None:
    registry: Registry[Any] = Registry("model")
    registry.register("x")(lambda params: params)
    assert registry.build({"name": "x", "params": {"a": 1}}) == {"a": 1}


def test_build_passes_defaults_only_where_they_are_accepted(registry: Registry[Any]) -> None:
    assert registry.build({"name": "plain"}, image_size=3, weight=2.0) == {"weight": 2.0}
    assert registry.build({"name": "plain", "weight": 5.0}, weight=2.0) == {"weight": 5.0}
    assert registry.build({"name": "open", "size": [1]}, split="val") == {"size": [1], "split": "val"}


@pytest.mark.parametrize("section", [{}, {"weight": 1.0}, {"name": 3}, {"name": None}])
def test_section_without_a_name(registry: Registry[Any], section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs a 'name', one of: open, plain"):
        registry.build(section)


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_errors_of_a_factory_name_the_component(registry: Registry[Any], error: type[Exception]) -> None:
    @registry.register("broken")
    def make_broken() -> None:
        raise error("kernel_size is even")

    with pytest.raises(ConfigError, match="loss 'broken': kernel_size is even") as caught:
        registry.build({"name": "broken"})
    assert isinstance(caught.value.__cause__, error)


def test_missing_argument_is_named(registry: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match=r"loss 'open'.*size"):
        registry.build({"name": "open"})


def test_accepted(registry: Registry[Any]) -> None:
    plain, opened = registry.accepted("plain"), registry.accepted("open")
    assert list(plain.parameters) == ["weight"]
    assert plain.parameters["weight"].annotation is float
    assert not plain.open
    assert plain.required == []
    assert opened.open
    assert opened.required == ["size"]
    assert opened.parameters["size"].annotation == Sequence[int]


def test_accepted_by_a_class_and_by_unreadable_annotations() -> None:
    class Loss:
        def __init__(self, weight: int, *, scale: float = 2.0) -> None: ...

    def odd(weight: NotImported = 1.0) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    of_class = accepted_by(Loss)
    assert [(n, p.annotation) for n, p in of_class.parameters.items()] == [("weight", int), ("scale", float)]
    assert list(accepted_by(odd).parameters) == ["weight"]
