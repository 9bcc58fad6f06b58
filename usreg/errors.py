"""Errors whose text is written for the person who runs the program.

The command lines of usreg print a :class:`UsageError` without a traceback and exit with code 2; every other
exception is a bug, of usreg or of a plugin, and keeps its traceback.
"""

from __future__ import annotations


class UsageError(Exception):
    """Something that the user can put right: the text says what was given, what is valid and the way out."""


class ConfigError(UsageError, ValueError):
    """A configuration that cannot work: an unknown key or name, a wrong type, an impossible value, a broken plugin."""


class DataError(UsageError, ValueError):
    """Data that cannot be used: a missing or corrupt file, unequal shapes, a label without its pair, an empty list."""
