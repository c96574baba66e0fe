"""JSON from a server becomes frozen records, once, where it arrives. null counts as left out, and
what has no name in the record is not read."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from remote.agent.shared.reading import read
from remote.records import Asked, Lenient, RunDetail

T = TypeVar("T")


class WrongForm(ValueError):
    """Its text is the place, made of our own names and numbers only; empty for the whole."""


def decode(kind: type[T], value: object) -> T:
    """`value` as a record (a dataclass, a named tuple), or as any type in one. Raises WrongForm."""
    return typing.cast(T, _decode(kind, value, ""))


def _decode(kind: Any, value: Any, place: str) -> Any:
    if kind in (Asked, RunDetail):
        return read(kind, value)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _record(typing.cast(type, kind), value, place)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode(next(part for part in parts if part is not types.NoneType), value, place)
    if origin is typing.Literal:
        right = isinstance(value, str) and value in parts
    elif origin is tuple:
        if isinstance(value, list):
            if parts[0] is Any:
                return tuple(value)
            return tuple(_decode(parts[0], item, f"{place}[{n}]") for n, item in enumerate(value))
        right = False
    elif origin is Mapping:
        if isinstance(value, dict):
            return {name: _decode(parts[1], item, f"{place}[…]") for name, item in value.items()}
        right = False
    else:
        kinds = (int, float) if kind is float else kind
        right = isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
    if not right:
        raise WrongForm(place)
    return value


def _record(kind: type, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise WrongForm(place)
    given = {}
    for name, hint, needed in fields_of(kind):
        found, inner = value.get(name), f"{place}.{name}".lstrip(".")
        if found is not None:
            try:
                given[name] = _decode(hint, found, inner)
            except WrongForm:
                if not issubclass(kind, Lenient):
                    raise
        elif needed:
            raise WrongForm(inner)
    return kind(**given)


@functools.cache
def fields_of(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type, and whether it must be there."""
    hints, parameters = typing.get_type_hints(kind), inspect.signature(kind).parameters
    return tuple(
        (name, hints[name], parameter.default is parameter.empty)
        for name, parameter in parameters.items()
    )
