"""Records in JSON: told as objects, and read again from what a file or the other end holds."""

from typing import Any, Dict, Type, TypeVar

T = TypeVar("T")


def tell(value: Any) -> Any:
    """Named tuples become objects, at any depth of them and of lists."""
    if hasattr(value, "_asdict"):
        return {name: tell(one) for name, one in value._asdict().items()}
    return [tell(one) for one in value] if isinstance(value, (list, tuple)) else value


def read(kind: Type[T], told: object) -> T:
    """A named tuple with a default for every field. What is missing, or of another kind than its
    default, has the default; None takes anything. What has no name in it is not read."""
    record: Any = kind
    given: Dict[str, Any] = {}
    for name, default in record._field_defaults.items():
        value = told.get(name) if isinstance(told, dict) else None
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if hasattr(default, "_fields"):
            given[name] = read(type(default), value)
        elif isinstance(default, tuple) and isinstance(value, list):
            given[name] = _read_all(record.__annotations__[name], value)
        elif type(value) in kinds or (default is None and value is not None):
            given[name] = value
    return kind(**given)


def _read_all(hint: Any, values: "list[Any]") -> "tuple[Any, ...]":
    """Of a tuple of records those that are objects; of any other tuple all."""
    kind: Any = getattr(hint, "__args__", (None,))[0]
    if not hasattr(kind, "_fields"):
        return tuple(values)
    return tuple(read(kind, one) for one in values if isinstance(one, dict))
