"""Expressions of a rule: evaluated in Python's order, and written with their values.

The half of the tracer that deals with values; statements and loops are in `cri.formats.rules.tracer`.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeGuard, cast

from cri.errors import CriError
from cri.formats.rules.language import BINARY, COMPARE, Value
from cri.formats.traces import Edit, TraceWriter

_MAX_BITS, _MAX_LENGTH = 10_000, 10_000


def render(value: Value) -> str:
    """A value as traces show it: Python's, without spaces."""
    return "[" + ",".join(map(render, value)) + "]" if isinstance(value, list) else str(value)


def parse_value(name: str, text: str) -> Value:
    """An edited element's text as a value."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = None
    if not _is_value(value):
        raise CriError(f"edit.text: {text!r} is not allowed for {name!r}; must be an int, a bool or a list")
    return value


def _is_value(value: object) -> TypeGuard[Value]:
    return all(map(_is_value, value)) if isinstance(value, list) else isinstance(value, int)


@lru_cache(maxsize=4096)
def code_of(node: ast.AST) -> str:
    """A statement's line, or an expression, as the source shows it."""
    if isinstance(node, ast.While | ast.If | ast.For):
        node = copy.copy(node)
        node.body, node.orelse = [ast.Pass()], []
        return ast.unparse(node).splitlines()[0]
    return ast.unparse(node)


@lru_cache(maxsize=4096)
def names_read(node: ast.AST, written: bool = True) -> tuple[str, ...]:
    """Variables that a statement or test reads, except operands whose values are written with their expression
    anyway; with `written=False`, all variables that it reads."""
    return tuple(dict.fromkeys(_walk_reads(node, written)))


def _walk_reads(node: ast.AST, written: bool) -> Iterator[str]:
    """`written` says whether an expression at this place is written with its values."""
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            yield name
        case ast.Assign(targets=[target], value=value):
            yield from _walk_reads(value, written)
            yield from _walk_reads(target, False)
        case ast.AugAssign(target=target, value=value):
            for part in (as_load(target), value):
                if not (written and isinstance(part, ast.Name)):
                    yield from _walk_reads(part, written)
        case ast.Expr(value=ast.Call(func=function, args=arguments)):
            yield from _walk_reads(function, False)
            for argument in arguments:
                yield from _walk_reads(argument, written)
        case ast.Return(value=ast.expr() as value):
            for part in value.elts if isinstance(value, ast.Tuple) else [value]:
                yield from _walk_reads(part, written)
        case ast.BinOp() | ast.Compare() | ast.UnaryOp(op=ast.USub()):
            for part in ast.iter_child_nodes(node):
                if not (written and isinstance(part, ast.Name)):
                    yield from _walk_reads(part, written)
        case ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
            for part in ast.iter_child_nodes(node):
                yield from _walk_reads(part, written)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield from _walk_reads(test, written)
            yield from _walk_reads(body, False)
            yield from _walk_reads(orelse, False)
        case _:
            for part in ast.iter_child_nodes(node):
                yield from _walk_reads(part, False)


@lru_cache(maxsize=4096)
def as_load(target: ast.expr) -> ast.expr:
    """What an augmented assignment reads before it assigns."""
    load = copy.copy(target)
    load.ctx = ast.Load()  # pyright: ignore[reportAttributeAccessIssue]
    return load


@dataclass(frozen=True)
class Term:
    """An evaluated expression: how it is written, and how it is computed again after an edit of a part."""

    value: Value
    text: str = ""
    name: str | None = None
    symbol: str = ""
    function: Callable[..., Value] | None = None
    parts: tuple[Term, ...] = ()
    binding: int = 4


_BINDING = {"+": 2, "-": 2, "*": 3, "//": 3, "%": 3}  # comparisons 1, unary minus and values 4


class ExpressionWriter:
    """The variables of a running rule, and a trace to write expressions on."""

    def __init__(self, edit: Edit | None) -> None:
        self.writer = TraceWriter(edit)
        self.variables: dict[str, Value] = {}
        self.changed: list[str] = []  # lists that the current statement has changed

    def separate(self) -> None:
        if self.writer.length:
            self.writer.put(", ")

    def write_changed(self, *, but: str | None = None) -> None:
        """The new state of the lists that the statement has changed."""
        for name in dict.fromkeys(self.changed):
            if name != but:
                self.separate()
                self.writer.put(f"{name}=")
                self.write_value(name, self.variables[name], "copy")
        self.changed = []

    def lookup(self, name: str) -> Value:
        if name not in self.variables:
            raise ValueError(f"{name} has no value yet")
        return self.variables[name]

    def combine(self, op: ast.operator, left: Term, right: Term) -> Term:
        symbol, function = BINARY[type(op)]
        value = _apply(symbol, function, left.value, right.value)
        return Term(value, "", None, symbol, function, (left, right), _BINDING[symbol])

    def evaluate(self, node: ast.expr, writes: bool = True) -> Term:
        """The value of an expression, computed in Python's order. Tests inside it and computed arguments
        of calls are written on the current line as they are met, where it `writes`."""
        match node:
            case ast.Constant(value=value):
                return Term(cast("int", value), str(value))
            case ast.Name(id=name):
                value = self.lookup(name)
                return Term(value, render(value), name)
            case ast.BinOp(left=left, op=op, right=right):
                return self.combine(op, self.evaluate(left, writes), self.evaluate(right, writes))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                term = self.evaluate(operand, writes)
                value = _apply("-", lambda x: -x, term.value)
                return Term(value, "", None, "-", lambda x: -x, (term,))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                symbol, function = COMPARE[type(op)]
                parts = self.evaluate(left, writes), self.evaluate(right, writes)
                return Term(function(*(part.value for part in parts)), "", None, symbol, function, parts, 1)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                if writes:
                    self.separate()
                    truth = self.write_truth(test, "branch")
                else:
                    truth = bool(self.evaluate(test, writes).value)
                return self.evaluate(body if truth else orelse, writes)
            case _:
                value = self.opaque(node, writes)
                return Term(value, render(value), code_of(node))

    def opaque(self, node: ast.expr, writes: bool) -> Value:
        """The value of an expression that is shown by its value alone."""
        match node:
            case ast.UnaryOp(operand=operand):
                return not self.evaluate(operand, writes).value
            case ast.BoolOp(op=op, values=values):
                value: Value = False
                for part in values:
                    value = self.evaluate(part, writes).value
                    if bool(value) is isinstance(op, ast.Or):
                        break
                return value
            case ast.List(elts=elements):
                return _check_size([self.evaluate(element, writes).value for element in elements])
            case ast.Subscript(value=container, slice=index):
                items = self.evaluate(container, writes).value
                return cast("Any", items)[self.evaluate(index, writes).value]
            case ast.Call(func=ast.Name(id=name), args=[argument]):
                value = self.evaluate(argument, writes).value
                if not isinstance(value, list):
                    raise TypeError(f"{name} of what is not a list")
                return len(value) if name == "len" else list(value)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method), args=arguments):
                receiver = self.lookup(name)
                if not isinstance(receiver, list):
                    raise TypeError(f"{name} is not a list")
                values = [self.argument(argument, writes) for argument in arguments]
                self.changed.append(name)
                result = getattr(receiver, method)(*values)
                _check_size(receiver)
                return False if result is None else result
            case _:  # refused by the checker
                raise AssertionError(ast.dump(node))

    def argument(self, node: ast.expr, writes: bool) -> Value:
        term = self.evaluate(node, writes)
        if not term.parts or not writes:
            return term.value
        self.separate()
        return self.write_result("value", term, "digit")

    # --- writing values ---

    def write_value(self, name: str, value: Value, role: str) -> Value:
        """Writes a value as element `name`, a list's items as `name[i]` too; returns it after an edit.

        An edited list keeps its identity, so that other names of it see the edit.
        """
        writer = self.writer
        if not isinstance(value, list):
            text = render(value)
            written = writer.element(name, text, role)
            return value if written == text else parse_value(name, written)
        edited = writer.edited(name)
        if edited is not None:
            new = parse_value(name, edited)
            if not isinstance(new, list):
                raise CriError(f"edit.text: {edited!r} is not allowed for {name!r}; must be a list")
            value[:] = new
        start = writer.length
        writer.put("[")
        for i, item in enumerate(value):
            if i:
                writer.put(",")
            text = render(item)
            written = writer.element(f"{name}[{i}]", text, role)
            if written != text:
                value[i] = parse_value(name, written)
        writer.put("]")
        writer.mark(name, start, writer.length, role)
        return value

    def write_result(self, name: str, term: Term, role: str, copied: str = "copy") -> Value:
        """Writes `7+8+0=15` for a computed value, the value alone for one that is copied."""
        if not term.parts:
            return self.write_value(name, term.value, copied)
        value = self.write_term(term)
        self.writer.put("=")
        return self.write_value(name, value, role)

    def write_term(self, term: Term) -> Value:
        """Writes an expression with its values; computes it again where one of them is edited."""
        if not term.parts:
            if term.name is None:
                self.writer.put(term.text)
                return term.value
            written = self.writer.element(f"operand:{term.name}", term.text, "copy")
            if written == term.text:
                return term.value
            value = parse_value(term.name, written)
            if term.name in self.variables:  # the variable's last written value is its value
                self.variables[term.name] = value
            return value
        values: list[Value] = []
        for i, part in enumerate(term.parts):
            if i or len(term.parts) == 1:
                self.writer.put(term.symbol)
            brackets = part.binding < term.binding or (i > 0 and part.binding == term.binding)
            self.writer.put("(" if brackets else "")
            values.append(self.write_term(part))
            self.writer.put(")" if brackets else "")
        if all(value is part.value for value, part in zip(values, term.parts, strict=True)):
            return term.value
        return _apply(term.symbol, cast("Callable[..., Value]", term.function), *values)

    def write_truth(self, node: ast.expr, role: str) -> bool:
        """Writes the truth values that make up a test. Variables are shown even where an earlier operand
        of and / or decides; other operands are then `...`, as Python does not evaluate them."""
        match node:
            case ast.BoolOp(op=op, values=operands):
                decisive = isinstance(op, ast.Or)
                truth, decided = not decisive, False
                for i, operand in enumerate(operands):
                    if i:
                        self.writer.put(" or " if decisive else " and ")
                    if decided and not (isinstance(operand, ast.Name) and operand.id in self.variables):
                        self.writer.put("...")
                        continue
                    brackets = isinstance(operand, ast.BoolOp) and not decisive
                    self.writer.put("(" if brackets else "")
                    value = self.write_truth(operand, role)
                    self.writer.put(")" if brackets else "")
                    if not decided:
                        truth, decided = value, value is decisive
                return truth
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                brackets = isinstance(operand, ast.BoolOp)
                self.writer.put("not (" if brackets else "not ")
                truth = not self.write_truth(operand, role)
                self.writer.put(")" if brackets else "")
                return truth
            case _:
                term = self.evaluate(node, writes=False)
                truth = bool(term.value)
                if term.parts:
                    truth = bool(self.write_term(term))
                    self.writer.put(" is ")
                written = self.writer.element(f"truth:{code_of(node)}", str(truth), role)
                if written not in ("True", "False"):
                    raise CriError(f"edit.text: {written!r} is not allowed for a truth value; must be True or False")
                return written == "True"


def _apply(symbol: str, function: Callable[..., Value], *values: Value) -> Value:
    """`function` of the values; lists can only be compared, or added to lists."""
    n_lists = sum(isinstance(value, list) for value in values)
    if n_lists and symbol not in COMPARE_SYMBOLS and not (symbol == "+" and n_lists == len(values) == 2):
        raise TypeError(f"{symbol} of a list")
    return _check_size(function(*values))


def _check_size(value: Value) -> Value:
    if isinstance(value, list):
        left, seen = [value], 0  # a list may hold itself, or the same list many times over
        while left:
            items = left.pop()
            seen += len(items)
            if seen > _MAX_LENGTH:
                raise ValueError(f"a list of more than {_MAX_LENGTH} items, those of its lists included")
            left += [item for item in items if isinstance(item, list)]
    elif value.bit_length() > _MAX_BITS:
        raise ValueError(f"a number of more than {_MAX_BITS} bits")
    return value


COMPARE_SYMBOLS = frozenset(symbol for symbol, _ in COMPARE.values())
