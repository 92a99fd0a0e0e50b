"""What mutants.py changes in a source file: one node of its syntax tree at a time.

Comparisons, arithmetic and boolean operators are swapped; numbers grow by one; True and False
change places; `not` goes; a returned value becomes None; the condition of an `if` is negated; a
call whose result nobody uses is left out. Strings, annotations, what `raise` and `print` say,
`__repr__`, and blocks for type checkers or for `__main__` stay as they are.
"""

import ast
import collections
import copy
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_SWAPPED: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
}


class Mutant(NamedTuple):
    """A change of one node."""

    id: str  # of file, function, and what is changed into what: other lines may move
    file: str  # below the root, with slashes
    line: int
    before: str  # the line, and what becomes of it
    after: str
    begin: int  # bytes of the file that make place for `text`
    end: int
    text: str

    def apply(self, source: bytes) -> bytes:
        """The whole file, changed."""
        return source[: self.begin] + self.text.encode() + source[self.end :]


def mutants_of(root: Path, file: str) -> list[Mutant]:
    """Returns all mutants of a source file, in the order of its lines."""
    source = (root / file).read_bytes()
    lines = source.splitlines(keepends=True)
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for scope, node, after in _Finder().find(ast.parse(source)):
        begin = sum(map(len, lines[: node.lineno - 1])) + node.col_offset  # offsets are in bytes
        end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
        mutant = Mutant("", file, node.lineno, "", "", begin, end, after)
        old, new = (
            text.splitlines()[node.lineno - 1].decode().strip()
            for text in (source, mutant.apply(source))
        )
        key = "\n".join([file, scope, old, ast.unparse(node), after])
        seen[key] += 1
        name = hashlib.sha256(f"{key}\n{seen[key]}".encode()).hexdigest()[:8]
        found.append(mutant._replace(id=name, before=old, after=new))
    return sorted(found, key=lambda mutant: mutant.line)


def _changes(node: Any) -> Iterator[tuple[Any, str]]:
    """Yields (node, text to put in its place): `node` itself, or its condition or value."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in _SWAPPED:
            yield node, _unparsed(node, ops=[_SWAPPED[type(op)]()])
        case ast.BinOp(op=op) if type(op) in _SWAPPED and not _is_text(node):
            yield node, _unparsed(node, op=_SWAPPED[type(op)]())
        case ast.BoolOp(op=op):
            yield node, _unparsed(node, op=_SWAPPED[type(op)]())
        case ast.AugAssign(op=op) if type(op) in _SWAPPED:
            yield node, _unparsed(node, op=_SWAPPED[type(op)]())
        case ast.Constant(value=bool(value)):
            yield node, repr(not value)
        case ast.Constant(value=int(value) | float(value)):
            more = value + 1
            yield node, repr(more if more != value else 2 * value)  # 1e18 + 1 is 1e18
        case ast.UnaryOp(op=ast.Not()):
            yield node, f"({ast.unparse(node.operand)})"
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield value, "None"
        case ast.If(test=test) | ast.IfExp(test=test):
            yield test, f"not ({ast.unparse(test)})"
        case ast.Expr(value=ast.Call()):
            yield node, "pass"


def _unparsed(node: ast.AST, **changes: Any) -> str:
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return ast.unparse(changed)


def _is_text(node: ast.BinOp) -> bool:
    """Whether strings or paths are put together; any other operator is a TypeError there."""
    text = ast.unparse(node)
    path = isinstance(node.op, ast.Div) and re.search("dir|folder|path|root|file", text.lower())
    return bool(path) or "'" in text or '"' in text


class _Finder(ast.NodeVisitor):
    """Collects (scope, node, text to put in its place)."""

    def __init__(self) -> None:
        self._scope: list[str] = []
        self._found: list[tuple[str, Any, str]] = []

    def find(self, tree: ast.Module) -> list[tuple[str, Any, str]]:
        self.visit(tree)
        return self._found

    def visit(self, node: ast.AST) -> None:
        if self._stays(node):
            return
        self._found += [(".".join(self._scope), *change) for change in _changes(node)]
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        self._scope += [node.name] if named else []  # type: ignore[attr-defined]
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns") or (
                name == "msg" and isinstance(node, ast.Assert)
            ):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)
        del self._scope[len(self._scope) - named :]

    def _stays(self, node: ast.AST) -> bool:
        match node:
            case ast.Raise() | ast.JoinedStr():
                return True
            case ast.FunctionDef(name="__repr__" | "__str__"):
                return True
            case ast.Expr(value=call) | call if _is_print(call):
                return True
            case ast.If(test=test):
                return ast.unparse(test).endswith(("TYPE_CHECKING", "__name__ == '__main__'"))
        return False


def _is_print(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
