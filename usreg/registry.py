"""The registry of named factories behind losses, models, datasets and metrics."""

from __future__ import annotations

import difflib
import inspect
import logging
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import ConfigError, UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Accepted:
    """What a registered factory takes.

    Attributes:
        parameters: its keyword parameters by name; ``annotation`` is the evaluated type, or ``Parameter.empty``.
        open: whether it takes any other key too (``**kwargs``; ``**_`` only swallows keys and does not count).
        swallows: whether it has a ``**_``.
    """

    parameters: dict[str, inspect.Parameter]
    open: bool
    swallows: bool = False

    @property
    def required(self) -> list[str]:
        """Names of the parameters without a default."""
        return [name for name, p in self.parameters.items() if p.default is inspect.Parameter.empty]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest of the known names, or an empty string when none is near."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def accepted_by(factory: Callable[..., Any]) -> Accepted:
    """The keywords that a factory (a function or a class) takes, see :class:`Accepted`."""
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError, AttributeError, SyntaxError):  # annotations that only a type checker can evaluate
        hints = {}  # such parameters go unchecked
    parameters, is_open, swallows = {}, False, False
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            swallows = name.startswith("_")
            is_open = not swallows
        elif parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            parameters[name] = parameter.replace(annotation=hints.get(name, inspect.Parameter.empty))
    return Accepted(parameters, is_open, swallows)


def as_number(key: str, value: object) -> float:
    """A number; text counts if it spells one, since YAML 1.1 reads ``1e-4`` as text.

    Raises:
        ValueError: the value is no number, naming the key.
    """
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{key} is {value!r}; it must be a number") from None


def _with_numbers(key: str, value: Any, annotation: Any) -> Any:
    """The value, with text turned into a number where the annotation wants a number, or a sequence of some."""
    wanted = {annotation, *typing.get_args(annotation)}
    if isinstance(value, str) and wanted & {int, float} and str not in wanted and Any not in wanted:
        number = as_number(key, value)
        return int(number) if float not in wanted and number.is_integer() else number
    if isinstance(value, list | tuple):
        for inner in wanted:
            if typing.get_origin(inner) in (list, tuple, Sequence):
                return type(value)(_with_numbers(key, element, typing.get_args(inner)[0]) for element in value)
    return value


def _where(factory: Callable[..., Any]) -> str:
    return f"{factory.__module__}.{getattr(factory, '__qualname__', type(factory).__qualname__)}"


class Registry(dict[str, Callable[..., T]]):
    """A dictionary from names to factories that refuses duplicates and explains unknown names.

    A name belongs to the factory that registered it first; a second one is refused. The exception is built-ins:
    after :meth:`mark_builtins`, which a package calls below its own imports, a name registered before may be replaced
    once, by a plugin or by a module imported after it. The replacement is logged as a warning that names both.

    Args:
        kind: what the factories make, in the singular, for messages: ``"loss"``, ``"model"``, ``"dataset"``...
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._builtins: set[str] = set()

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator that enters a factory under ``name`` and returns it unchanged.

        Raises:
            TypeError: the decorator was used without a name.
            ValueError: another factory already has the name (see the class for built-ins).
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f'the {self.kind} registry needs a name: @register_{self.kind}("my_{self.kind}")')

        def enter(factory: F) -> F:
            known = self.get(name)
            if known is not None and known is not factory:
                if name not in self._builtins:
                    raise ValueError(
                        f"{self.kind} '{name}' is already registered by {_where(known)}; {_where(factory)} needs "
                        f"another name. (To define it again in a notebook, first delete it from the registry: "
                        f"{self.kind.upper()}_REGISTRY.pop({name!r}).)"
                    )
                logger.warning("%s '%s': %s replaces the built-in %s", self.kind, name, _where(factory), _where(known))
            self[name] = factory
            self._builtins.discard(name)
            return factory

        return enter

    def mark_builtins(self) -> None:
        """Declare all names registered so far as built in: each may be replaced once, with a warning in the log."""
        self._builtins.update(self)

    def __missing__(self, name: str) -> Callable[..., T]:
        raise ConfigError(
            f"unknown {self.kind} '{name}'.{did_you_mean(str(name), self)} Known: {', '.join(sorted(self)) or 'none'}. "
            f"Your own {self.kind} is known once its module is listed under the config key 'plugins'."
        )

    def accepted(self, name: str) -> Accepted:
        """The keys that the factory of this name takes; an unknown name raises :class:`ConfigError`."""
        return accepted_by(self[name])

    def arguments(self, section: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Split a section into the component's name and its keyword arguments.

        ``params``, where the factory itself has no parameter of that name, is merged under the section's other keys:
        a key given in both places keeps its top-level value.

        Raises:
            ConfigError: the section has no ``name``, the name is unknown, or ``params`` is not a mapping.
        """
        arguments = dict(section)
        name = arguments.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(
                f"the {self.kind} section needs a 'name', one of: {', '.join(sorted(self))}; it has {sorted(section)}"
            )
        if "params" in arguments and "params" not in self.accepted(name).parameters:
            params = arguments.pop("params")
            if params is not None and not isinstance(params, Mapping):
                raise ConfigError(f"{self.kind}.params must be a section of keys, not {params!r}")
            arguments = {**(params or {}), **arguments}
        return name, arguments

    def build(self, section: Mapping[str, Any], **defaults: Any) -> T:
        """Call the factory that ``section["name"]`` refers to with the section's other keys.

        Args:
            section: ``name`` and the factory's keys; ``params`` is merged under them.
            defaults: passed on where the factory names them (or takes ``**kwargs``) and the section does not set them.

        Text that spells a number is a number where the factory's annotation wants one. A key that only a ``**_`` of the
        factory takes does nothing, and gives a warning in the log.

        Raises:
            ConfigError: an unknown name, or the factory raised a ValueError or TypeError, whose text it repeats.
        """
        name, arguments = self.arguments(section)
        accepted = self.accepted(name)
        for key, value in defaults.items():
            if accepted.open or key in accepted.parameters:
                arguments.setdefault(key, value)
        if accepted.swallows:
            self._warn_of_swallowed(name, set(arguments) - set(accepted.parameters), accepted)
        try:
            for key in arguments.keys() & accepted.parameters.keys():
                arguments[key] = _with_numbers(key, arguments[key], accepted.parameters[key].annotation)
            return self[name](**arguments)
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.kind} '{name}': {error}") from error

    def _warn_of_swallowed(self, name: str, keys: Iterable[str], accepted: Accepted) -> None:
        for key in sorted(keys):
            logger.warning(
                "%s '%s' has no key '%s': it does nothing.%s Valid: %s",
                *(self.kind, name, key, did_you_mean(key, accepted.parameters)),
                ", ".join(sorted(accepted.parameters)) or "none",
            )
