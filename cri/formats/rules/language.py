"""Rules as code: the part of Python that a rule may use, checked before anything is run.

A rule is one pure function over ints, bools and (nested) lists of them:

    statements   assignment, augmented assignment, while, for (over a list or a range), if / elif / else,
                 return, and calls of pop, insert, append
    expressions  + - * // %, unary minus, single comparisons, and / or / not, `x if test else y`, list
                 displays, indexing, len, range (in a for), list (a copy)

Keyword-only parameters are the rule's *constants*: `parse_rule(add_digits, base=9)` writes 9 wherever
`base` stands in the body, so that the constant shows in the source, and drops branches that the
constants rule out. Comments, docstrings and annotations do not belong to the source.
"""

from __future__ import annotations

import ast
import inspect
import operator
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cri.errors import CriError, shown, unknown_name

Value = int | bool | list[Any]
"""What a rule computes with."""

BINARY: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
}
COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
METHODS = {"pop": (0, 1), "insert": (2, 2), "append": (1, 1)}
"""List methods with their least and greatest number of arguments."""
FUNCTIONS = {"len": (1, 1), "list": (1, 1), "range": (1, 3)}


@dataclass(frozen=True, eq=False)
class Rule:
    """A checked rule.

    Attributes:
        name, parameters: of the function.
        body: its statements, line numbers being those of the file or string it was read from.
        source: the text that prompts show and traces recite.
    """

    name: str
    parameters: tuple[str, ...]
    body: tuple[ast.stmt, ...]
    source: str

    @property
    def variables(self) -> list[str]:
        """Parameters and assigned names, in order of appearance."""
        stored = [n.id for s in self.body for n in ast.walk(s) if isinstance(n, ast.Name) and _is_store(n)]
        return list(dict.fromkeys([*self.parameters, *stored]))

    @property
    def code_lines(self) -> list[str]:
        """The lines of the source without indentation."""
        return list(dict.fromkeys(line.strip() for line in self.source.splitlines()))


def parse_rule(rule: Callable[..., object] | str, **constants: Value) -> Rule:
    """Reads and checks a rule, given as a function or as its source, with its constants filled in.

    Raises `CriError` naming the line and the construct for anything outside the language above, and for
    constants that are missing or unknown.
    """
    text, first_line = _source(rule)
    try:
        tree = ast.parse(text)
        ast.unparse(tree)
    except SyntaxError as error:
        raise CriError(f"rule line {(error.lineno or 1) + first_line - 1}: not valid Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        what = "nested too deep" if isinstance(error, RecursionError | MemoryError) else f"not valid Python: {error}"
        raise CriError(f"rule: {what}") from None
    ast.increment_lineno(tree, first_line - 1)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        raise CriError("rule: must be exactly one function (def)")
    function = tree.body[0]
    parameters = _parameters(function)
    names = [arg.arg for arg in function.args.kwonlyargs]
    for name in constants:
        if name not in names:
            raise unknown_name(f"constant of rule {function.name}", name, names)
    if missing := [name for name in names if name not in constants]:
        raise CriError(f"rule {function.name}: give a value for {', '.join(missing)}")
    body = function.body
    if (
        isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ):
        body = body[1:]
    specialised: list[ast.stmt] = []
    for statement in body:
        result = _Specialise(constants).visit(statement)
        specialised.extend(result if isinstance(result, list) else [result])
    stored = {n.id for s in specialised for n in ast.walk(s) if isinstance(n, ast.Name) and _is_store(n)}
    _Checker({*parameters, *stored}).check_body(specialised)
    shown = ast.FunctionDef(
        name=function.name,
        args=ast.arguments(
            posonlyargs=[], args=[ast.arg(p) for p in parameters], kwonlyargs=[], kw_defaults=[], defaults=[]
        ),
        body=specialised,
        decorator_list=[],
        lineno=function.lineno,
    )
    return Rule(function.name, tuple(parameters), tuple(specialised), ast.unparse(ast.fix_missing_locations(shown)))


def _source(rule: Callable[..., object] | str) -> tuple[str, int]:
    if isinstance(rule, str):
        return textwrap.dedent(rule).strip("\n") + "\n", 1 + len(rule) - len(rule.lstrip("\n"))
    try:
        lines, first = inspect.getsourcelines(rule)
    except (OSError, TypeError):
        raise CriError(f"rule: the source of {shown(rule)} is not available; give the source text") from None
    return textwrap.dedent("".join(lines)), first


def _parameters(function: ast.FunctionDef) -> list[str]:
    args = function.args
    if function.decorator_list:
        raise _unsupported(function, "decorator")
    if args.vararg or args.kwarg or args.posonlyargs or args.defaults or any(args.kw_defaults):
        raise _unsupported(function, "parameters other than plain and keyword-only ones without defaults")
    return [arg.arg for arg in args.args]


def _is_store(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _unsupported(node: ast.AST, construct: str) -> CriError:
    return CriError(f"rule line {getattr(node, 'lineno', '?')}: unsupported: {construct}")


class _Specialise(ast.NodeTransformer):
    """Writes constants into a body and drops the branches that they rule out."""

    def __init__(self, constants: dict[str, Value]) -> None:
        self.constants = constants

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self.constants:
            return node
        if _is_store(node):
            raise CriError(f"rule line {node.lineno}: the constant {node.id} is assigned")
        value = ast.parse(repr(self.constants[node.id]), mode="eval").body
        for part in ast.walk(value):
            ast.copy_location(part, node)
        return value

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        match node.test:
            case ast.Compare(left=ast.Constant(value=x), ops=[op], comparators=[ast.Constant(value=y)]) if (
                type(op) in COMPARE
            ):
                return node.body if COMPARE[type(op)][1](x, y) else node.orelse
            case _:
                return node


class _Checker:
    """Refuses everything that the tracer does not run."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def check_body(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            self.check_statement(node)

    def check_statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[target], value=value):
                self.check_target(target)
                self.check(value)
            case ast.AugAssign(target=target, op=op, value=value):
                if type(op) not in BINARY:
                    raise _unsupported(node, f"operator {type(op).__name__}")
                if isinstance(target, ast.Subscript) and any(isinstance(n, ast.Call) for n in ast.walk(target.slice)):
                    raise _unsupported(node, "a call in the index of an augmented assignment")
                self.check_target(target)
                self.check(value)
            case ast.Expr(value=ast.Call(func=ast.Attribute()) as call):
                self.check_method(call)
            case ast.While(test=test, body=body, orelse=[]):
                self.check(test)
                self.check_body(body)
            case ast.For(target=ast.Name() as target, iter=iterable, body=body, orelse=[]):
                self.check_target(target)
                if (
                    isinstance(iterable, ast.Call)
                    and isinstance(iterable.func, ast.Name)
                    and iterable.func.id == "range"
                ):
                    self.check_call(iterable, iterable.args, "range", FUNCTIONS["range"])
                else:
                    self.check(iterable)
                self.check_body(body)
            case ast.If(test=test, body=body, orelse=orelse):
                self.check(test)
                self.check_body(body)
                self.check_body(orelse)
            case ast.Return(value=ast.Tuple(elts=elements)) if elements:
                for element in elements:
                    self.check(element)
            case ast.Return(value=ast.expr() as value):
                self.check(value)
            case ast.Return():
                raise _unsupported(node, "return without a value")
            case ast.Assign(targets=targets) if len(targets) > 1:
                raise _unsupported(node, "assignment to several targets")
            case ast.While() | ast.For() if node.orelse:
                raise _unsupported(node, f"else of a {type(node).__name__.lower()} loop")
            case ast.For():
                raise _unsupported(node, "loop target other than a name")
            case ast.Expr():
                raise _unsupported(node, "expression as a statement")
            case _:
                raise _unsupported(node, f"statement {type(node).__name__}")

    def check_target(self, node: ast.expr) -> None:
        match node:
            case ast.Name(id=name):
                if name in FUNCTIONS:
                    raise _unsupported(node, f"assignment to {name}")
            case ast.Subscript(value=ast.Name() as value, slice=index):
                self.check(value)
                self.check(index)
            case _:
                raise _unsupported(node, f"assignment to {ast.unparse(node)!r}")

    def check(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=value):
                if not isinstance(value, int):
                    raise _unsupported(node, f"constant {value!r}")
            case ast.Name(id=name):
                if name not in self.names:
                    raise CriError(f"rule line {node.lineno}: {name!r} is not a variable of the rule")
            case ast.BinOp(left=left, op=op, right=right):
                if type(op) not in BINARY:
                    raise _unsupported(node, f"operator {type(op).__name__}")
                self.check(left)
                self.check(right)
            case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
                self.check(operand)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                if len(ops) > 1:
                    raise _unsupported(node, "chained comparison")
                if type(ops[0]) not in COMPARE:
                    raise _unsupported(node, f"comparison {type(ops[0]).__name__}")
                self.check(left)
                self.check(comparators[0])
            case ast.BoolOp(values=values):
                for value in values:
                    self.check(value)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                for part in (test, body, orelse):
                    self.check(part)
            case ast.List(elts=elements):
                for element in elements:
                    self.check(element)
            case ast.Subscript(value=value, slice=index):
                self.check(value)
                self.check(index)
            case ast.Call(func=ast.Attribute(attr="insert" | "append" as method)):
                raise _unsupported(node, f"the value of {method}")
            case ast.Call(func=ast.Attribute()):
                self.check_method(node)
            case ast.Call(func=ast.Name(id="len" | "list" as name), args=args):
                self.check_call(node, args, name, FUNCTIONS[name])
            case ast.Call():
                raise _unsupported(node, f"call of {ast.unparse(node.func)}")
            case _:
                raise _unsupported(node, f"expression {type(node).__name__}")

    def check_method(self, node: ast.Call) -> None:
        function = cast("ast.Attribute", node.func)
        if function.attr not in METHODS:
            raise _unsupported(node, f"method {function.attr}")
        if not isinstance(function.value, ast.Name):
            raise _unsupported(node, f"{function.attr} of what is not a variable")
        self.check(function.value)
        self.check_call(node, node.args, function.attr, METHODS[function.attr])

    def check_call(self, node: ast.Call, args: list[ast.expr], name: str, allowed: tuple[int, int]) -> None:
        if node.keywords or not allowed[0] <= len(args) <= allowed[1]:
            raise _unsupported(node, f"{name} with these arguments")
        for argument in args:
            self.check(argument)
