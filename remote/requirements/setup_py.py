"""What setup.py hands to setup(), read without running it: assignments, simple functions, and the
files that it opens. What can't be told so is `Unknown`, never silently empty."""

from __future__ import annotations

import ast
import io
import operator
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from remote.errors import UsageError
from remote.requirements.lines import decode, read_text, split_lines

Names = dict[str, Any]
MODULES = re.compile(r"(?:(?:os|path|osp|op|io|codecs|pathlib|setuptools|pkg_resources)\.)+")
HELD = (str, list, tuple, dict, set, io.StringIO, PurePosixPath)
METHODS = re.compile(
    r"append|extend|remove|update|items|keys|values|get|copy|read|readlines|splitlines|split"
    r"|l?strip|rstrip|startswith|endswith|replace|lower|format|join|joinpath"
)
"""Called of what is in `HELD`, and of nothing else."""
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{kind.__name__: kind for kind in (list, tuple, dict, set, str, sorted, len, sum)},
    **dict.fromkeys(("abspath", "realpath", "normpath"), str),
    **{"join": posixpath.join, "dirname": posixpath.dirname, "Path": PurePosixPath},
    "print": lambda *_, **__: None,
}
OF_PATHS = {
    **{"read_text": "read_text", "open": "open", "exists": "exists", "is_file": "exists"},
    **{"resolve": "Path", "absolute": "Path"},
}
"""Methods, and the functions that do the same."""
OPERATORS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    **{ast.Add: operator.add, ast.Div: operator.truediv, ast.BitOr: operator.or_},
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.is_},
    ast.IsNot: operator.is_not,
    **{ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b},
}
NOT_FOLLOWED = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.Pass, ast.Assert)


class Unknown(Exception):
    """It is known only to who runs the file."""


WRONG = (TypeError, ValueError, LookupError, AttributeError, RecursionError)
"""What the file's own code would raise."""


class _Returned(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def setup_arguments(path: Path) -> dict[str, Any]:
    """The keywords of the call of setup(), `Unknown` where they can't be told; `**` stands for
    those that are not named. Empty without a setup.py. Raises ValueError, SyntaxError among
    them."""
    if not path.is_file():
        return {}
    script = _Script(path.parent)
    names: Names = {"__file__": path.resolve().as_posix(), "__name__": "__main__"}
    for statement in ast.parse(decode(path.read_bytes()).lstrip("\ufeff"), path.name).body:
        try:
            script.run([statement], names)
        except Unknown:
            _forget(statement, names)
    return {name: _whole(value) for name, value in script.told.items()}


def _whole(value: Any) -> Any:
    """A table of which a part is not known is not known."""
    parts = value.values() if isinstance(value, dict) else ()
    return next((one for one in parts if isinstance(one, Unknown)), value)


def _forget(statement: ast.stmt, names: Names) -> None:
    """What it may have changed, by functions that it calls too, is not known any more."""
    pending: list[ast.stmt] = [statement]
    for one in pending:
        for node in (node for node in ast.walk(one) if isinstance(node, ast.Name)):
            held = names.get(node.id)
            if isinstance(held, ast.FunctionDef):
                pending += [held] if held not in pending else []
            elif isinstance(held, (list, dict, set)) or isinstance(node.ctx, ast.Store):
                names.pop(node.id, None)


class _Script:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.functions: Mapping[str, Callable[..., Any]] = {
            **FUNCTIONS,
            **{"read_text": self._read, "parse_requirements": self._parse_requirements},
            **dict.fromkeys(("exists", "isfile"), lambda place: (folder / str(place)).exists()),
            "open": lambda place, *_, **__: io.StringIO(self._read(place)),
            "getcwd": lambda: folder.resolve().as_posix(),
        }
        self.told: dict[str, Any] = {"**": Unknown("it calls no setup() that can be read")}

    def run(self, statements: Sequence[ast.stmt], names: Names) -> None:
        """Raises Unknown, or _Returned."""
        for statement in statements:
            try:
                self._do(statement, names)
            except WRONG as error:
                raise Unknown(str(error)) from None

    def _do(self, statement: ast.stmt, names: Names) -> None:
        match statement:
            case ast.Assign(targets=[target], value=value):
                self._assign(target, self.value(value, names), names)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, self.value(value, names), names)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=ast.Add(), value=value):
                names[name] = self.value(target, names) + self.value(value, names)
            case ast.With(items=items, body=body):
                for item in items:
                    opened = self.value(item.context_expr, names)
                    if item.optional_vars is not None:
                        self._assign(item.optional_vars, opened, names)
                self.run(body, names)
            case ast.FunctionDef(name=name):
                names[name] = statement
            case ast.Return(value=ast.expr() as value):
                raise _Returned(self.value(value, names))
            case ast.If(test=test, body=body, orelse=orelse):
                self.run(body if self.value(test, names) else orelse, names)
            case ast.For(target=target, iter=items, body=body, orelse=[]):
                for one in self.value(items, names):
                    self._assign(target, one, names)
                    self.run(body, names)
            case ast.Try(body=body):
                self.run(body, names)
            case ast.Expr(value=value):
                self.value(value, names)
            case _ if not isinstance(statement, NOT_FOLLOWED):
                raise Unknown(type(statement).__name__)

    def _assign(self, target: ast.expr, value: Any, names: Names) -> None:
        match target:
            case ast.Name(id=name):
                names[name] = value
            case ast.Subscript(value=held, slice=key):
                self.value(held, names)[self.value(key, names)] = value
            case _:
                raise Unknown(ast.unparse(target))

    def value(self, node: ast.expr, names: Names) -> Any:
        """Raises Unknown."""
        found = self._value(node, names)
        if isinstance(found, Unknown):
            raise found
        return found

    def _tried(self, node: ast.expr, names: Names) -> Any:
        """What can't be told may be of no interest."""
        try:
            value = self.value(node, names)
        except Unknown as unknown:
            return unknown
        except WRONG as error:
            return Unknown(str(error))
        return list(value) if isinstance(value, (io.StringIO, set, tuple)) else value

    def _value(self, node: ast.expr, names: Names) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.Tuple(elts=elements):
                return tuple(self._elements(elements, names))
            case ast.List(elts=elements) | ast.Set(elts=elements):
                return list(self._elements(elements, names))
            case ast.Dict(keys=keys, values=values):
                pairs: dict[Any, Any] = {}
                for key, one in zip(keys, values, strict=True):
                    if key is None:
                        pairs |= self.value(one, names)
                    else:
                        pairs[self.value(key, names)] = self._tried(one, names)
                return pairs
            case ast.JoinedStr(values=parts):
                return "".join(str(self.value(part, names)) for part in parts)
            case ast.FormattedValue(value=value, format_spec=None):
                return self.value(value, names)
            case (
                ast.ListComp(elt=element, generators=[first, *rest])
                | ast.GeneratorExp(elt=element, generators=[first, *rest])
            ):
                return list(self._comprehended(element, [first, *rest], names))
        return self._found(node, names)

    def _found(self, node: ast.expr, names: Names) -> Any:
        """What operators, subscripts, attributes and calls make of other values."""
        match node:
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](self.value(left, names), self.value(right, names))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
                return OPERATORS[type(op)](self.value(left, names), self.value(right, names))
            case ast.BoolOp(op=op, values=[*first, last]):
                for one in first:
                    found = self.value(one, names)
                    if bool(found) is isinstance(op, ast.Or):
                        return found
                return self.value(last, names)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.value(operand, names)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.value(body if self.value(test, names) else orelse, names)
            case ast.Subscript(value=held, slice=key):
                return self.value(held, names)[self.value(key, names)]
            case ast.Slice(lower=lower, upper=upper, step=None):
                return slice(*(one and self.value(one, names) for one in (lower, upper)))
            case ast.Attribute(value=held, attr="parent"):
                return PurePosixPath(self.value(held, names)).parent
            case ast.Attribute(value=held, attr="req" | "requirement"):
                return str(self.value(held, names))  # one of parse_requirements
            case ast.Call():
                return self._call(node, names)
        raise Unknown(ast.unparse(node))

    def _elements(self, elements: Sequence[ast.expr], names: Names) -> Iterator[Any]:
        for one in elements:
            if isinstance(one, ast.Starred):
                yield from self.value(one.value, names)
            else:
                yield self.value(one, names)

    def _comprehended(
        self, element: ast.expr, generators: list[ast.comprehension], names: Names
    ) -> Iterator[Any]:
        if not generators:
            yield self.value(element, names)
            return
        first, *rest = generators
        for one in self.value(first.iter, names):
            inner = dict(names)
            self._assign(first.target, one, inner)
            if all(self.value(test, inner) for test in first.ifs):
                yield from self._comprehended(element, rest, inner)

    def _call(self, node: ast.Call, names: Names) -> Any:
        name = ast.unparse(node.func)
        if name.split(".")[0] not in names:
            name = MODULES.sub("", name, count=1)
            if name.split(".")[-1] == "setup":
                return self._setup(node, names)
        own = names.get(name)
        if own is None and isinstance(node.func, ast.Attribute) and "." in name:
            return self._method(node, node.func, names)
        arguments = list(self._elements(node.args, names))
        words = {str(one.arg): self._tried(one.value, names) for one in node.keywords}
        if isinstance(own, ast.FunctionDef):
            return self._own(own, arguments, words, names)
        if own is None and name in self.functions:
            return self.functions[name](*arguments, **words)
        raise Unknown(f"{name}()")

    def _method(self, node: ast.Call, called: ast.Attribute, names: Names) -> Any:
        held, name = self.value(called.value, names), called.attr
        if isinstance(held, PurePosixPath) and name in OF_PATHS:
            return self.functions[OF_PATHS[name]](held)
        if not isinstance(held, HELD) or not METHODS.fullmatch(name):
            raise Unknown(f"{name}()")
        return getattr(held, name)(*self._elements(node.args, names))

    def _own(
        self, function: ast.FunctionDef, arguments: list[Any], words: Names, names: Names
    ) -> Any:
        wanted = function.args
        known = [one.arg for one in wanted.args]
        usual = [self.value(value, names) for value in wanted.defaults]
        inner = {**names, **dict(zip(known[len(known) - len(usual) :], usual, strict=True))}
        inner |= dict(zip(known, arguments, strict=False)) | words
        if wanted.vararg:
            inner[wanted.vararg.arg] = arguments[len(known) :]
        try:
            self.run(function.body, inner)
        except _Returned as returned:
            return returned.value
        return None

    def _read(self, place: object, *_: object, **__: object) -> str:
        try:
            return read_text(self.folder / str(place), str(place))
        except UsageError as error:
            raise Unknown(error.message) from None

    def _parse_requirements(self, given: Any, *_: object, **words: object) -> list[str]:
        """pip's takes a file's name and a session, that of pkg_resources lines."""
        text = self._read(given) if "session" in words else given
        lines = text if isinstance(text, str) else "\n".join(text)
        return [line.text for line in split_lines(lines)]

    def _setup(self, node: ast.Call, names: Names) -> None:
        self.told = {}
        for word in node.keywords:
            value = self._tried(word.value, names)
            if word.arg is None and isinstance(value, dict):
                self.told |= value
            else:
                self.told[word.arg or "**"] = value
