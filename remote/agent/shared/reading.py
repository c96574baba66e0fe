"""Records in JSON: told as objects, and read again from what a file or the other end holds."""

import collections.abc
from typing import Any, Dict, Literal, Optional, Type, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


def tell(value: Any) -> Any:
    """Named tuples become objects, at any depth of them and of lists."""
    if hasattr(value, "_asdict"):
        return {name: tell(one) for name, one in value._asdict().items()}
    return [tell(one) for one in value] if isinstance(value, (list, tuple)) else value


def differing(record: T, before: Optional[T] = None) -> Dict[str, Any]:
    """The fields that are others than in `before`, told; without it, those that are set at all."""
    pair: Any = record, type(record)() if before is None else before
    names = pair[0]._fields
    return {name: tell(new) for name, new, old in zip(names, *pair) if new != old}


def read(kind: Type[T], told: object) -> T:
    """A named tuple with a default for every field. What is missing, null, or of another type has
    the default; what has no name in it is not read."""
    record: Any = kind
    given = told if isinstance(told, dict) else {}
    hints = record.__annotations__.items()
    found = {name: _read(hint, given[name]) for name, hint in hints if name in given}
    return kind(**{name: value for name, value in found.items() if value is not None})


def _read(hint: Any, value: Any) -> Any:
    """None for what is of another type."""
    if hint is Any:
        return value
    if isinstance(hint, type):
        if hasattr(hint, "_fields"):
            return read(hint, value) if isinstance(value, dict) else None
        return value if type(value) in ((int, float) if hint is float else (hint,)) else None
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Union:
        return _read(parts[0], value)
    if origin in (tuple, collections.abc.Sequence) and isinstance(value, (list, tuple)):
        items = tuple(_read(parts[0], one) for one in value)
        if hasattr(parts[0], "_fields"):  # what is no record counts as left out
            return tuple(one for one in items if one is not None)
        return items if parts[0] is Any or None not in items else None
    if origin is collections.abc.Mapping and isinstance(value, dict):
        pairs = {name: _read(parts[1], one) for name, one in value.items()}
        return pairs if parts[1] is Any or None not in pairs.values() else None
    return value if origin is Literal and value in parts else None
