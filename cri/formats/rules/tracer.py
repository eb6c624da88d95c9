"""The tracer: runs a rule and writes down its execution.

The text is written by running the code, so it cannot disagree with it. A trace starts with the
arguments. Every executed statement is then recited between fences and followed by the values that it
reads, what it computes from them, and the variables that it changes:

    digit1 = num1.pop() if num1 else 0     num1=[2,7]          True, digit1=7, num1=[2]
    total = digit1 + digit2 + carry                            total=7+8+0=15
    result.insert(0, total % 10)           result=[]           15%10=5, result=[5]
    num1 = result                                              num1=[5]

(one line each on the right). Values that the computation shows anyway, as operands or as copies, are not listed
before it. The test of `x if test else y` is written first, as one more value. For a test of a loop or branch, its
values are listed, then the truth values that decide it, and the decision:

    while num1 or num2:                    num1=[2], num2=[]   True or False: enter the loop
    if carry:                              carry=0             False: skip the branch
    if total > 9:                                              15>9: enter the branch
    for x in items:                                            left=[3,4]: enter the loop      x=3

The last line is the returned result, `return [8,5]`.

Line kinds: `arguments`, `fence`, `code`, `reads`, `effects`, `test`, `return`. Elements: a variable's
name for its value (`num1`, and `num1[0]` for an item of a list), `operand:NAME` within an expression,
`value` for a computed argument, `truth:TEXT` for a truth value, `decision`, `left` in a for loop,
`result` for a returned value that has no name.
"""

from __future__ import annotations

import ast
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cri.errors import CriError
from cri.formats.rules.expressions import ExpressionWriter, Term, as_load, code_of, names_read
from cri.formats.rules.language import Rule, Value, parse_rule
from cri.formats.traces import Edit, TraceLine, join

FENCE = "```"
ENTER_LOOP, END_LOOP = "enter the loop", "end the loop"
ENTER_BRANCH, SKIP_BRANCH = "enter the branch", "skip the branch"
PHRASES = (ENTER_LOOP, END_LOOP, ENTER_BRANCH, SKIP_BRANCH, "return ", " or ", " and ", "not ", " is ", "True", "False")
"""The tracer's own words."""

_MAX_CHARS = 20_000_000
_MAX_SECONDS = 10


@dataclass(frozen=True)
class Trace:
    """The execution of a rule: its lines and the value returned (a tuple where the rule returns one)."""

    lines: list[TraceLine]
    result: Value | tuple[Value, ...]

    @property
    def text(self) -> str:
        return join(self.lines)


def trace_rule(
    rule: Rule | Callable[..., object] | str, *arguments: Value, edit: Edit | None = None, max_steps: int = 100_000
) -> Trace:
    """Runs a rule (a function, its source, or one already parsed) on arguments that are not changed.

    With an `edit`, the edited element takes its new value where it is written, and the rule runs on
    with it: the lines before are those of the unedited trace, those after are what the rule would
    write from there. Edited reads and states change the variable, an edited decision is obeyed.

    Raises `CriError` for a rule outside the language (see `cri.formats.rules.language`), negative or other unusable
    arguments, a rule that fails on them or runs for more than `max_steps` statements, and an edit that
    fits no element or holds no legal value.
    """
    rule = rule if isinstance(rule, Rule) else parse_rule(rule)
    if len(arguments) != len(rule.parameters):
        raise CriError(f"rule {rule.name}: takes {len(rule.parameters)} arguments, not {len(arguments)}")
    for name, value in zip(rule.parameters, arguments, strict=True):
        _check_argument(name, value)
    return _Execution(rule, edit, max_steps).run([copy.deepcopy(value) for value in arguments])


def trace_atoms(rule: Rule) -> list[str]:
    """Strings that are one token each in a whole-word tokenizer: code lines, fences, phrases and
    `name=`, such that every element of a trace starts and ends at a token."""
    indents = {line[: len(line) - len(line.lstrip())] for line in rule.source.splitlines()} - {""}
    names = [*rule.variables, "left"]
    return [
        f"\n{FENCE}\n",
        *rule.code_lines,
        *(f"\n{indent}" for indent in sorted(indents)),
        *(f"{name}=" for name in names),
        *(f", {name}=" for name in names),
        *PHRASES,
        ": ",
        ", ",
        "//",
    ]


def _check_argument(name: str, value: object) -> None:
    if isinstance(value, list):
        for item in value:
            _check_argument(name, item)
    elif not isinstance(value, int):
        raise CriError(f"{name}: {value!r} is not allowed; must be an int, a bool or a list of them")
    elif value < 0:
        raise CriError(f"{name}: {value!r} is not allowed; must be non-negative")


class _Execution(ExpressionWriter):
    def __init__(self, rule: Rule, edit: Edit | None, max_steps: int) -> None:
        super().__init__(edit)
        self.rule = rule
        self.budget = self.max_steps = max_steps
        self.until = time.process_time() + _MAX_SECONDS
        self.iteration: int | None = None
        self.n_iterations = 0
        self.result: Value | tuple[Value, ...] | None = None

    def run(self, arguments: Sequence[Value]) -> Trace:
        for name, value in zip(self.rule.parameters, arguments, strict=True):
            self.separate()
            self.writer.put(f"{name}=")
            self.variables[name] = self.write_value(name, value, "copy")
        if self.rule.parameters:
            self.end_line("arguments")
        self.body(self.rule.body)
        if self.result is None:
            raise CriError(f"rule {self.rule.name}: ends without a return")
        return Trace(self.writer.finish(), self.result)

    # --- statements: each returns True where the rule has returned ---

    def body(self, statements: Sequence[ast.stmt]) -> bool:
        return any(self.statement(node) for node in statements)

    def statement(self, node: ast.stmt) -> bool:
        match node:
            case ast.While():
                return self.while_loop(node)
            case ast.For():
                return self.for_loop(node)
            case ast.If():
                return self.branch(node, "if")
            case ast.Return():
                self.guarded(node, self.return_value, node)
                return True
            case _:
                self.guarded(node, self.simple, node)
                return False

    def guarded(self, node: ast.stmt, function: Callable[..., Any], *args: Any) -> Any:
        """Calls `function` within the budget; Python's errors become one line naming the rule's line."""
        self.budget -= 1
        if self.budget < 0:
            raise CriError(f"rule {self.rule.name}: more than {self.max_steps} statements; does the loop end?")
        if time.process_time() > self.until:
            raise CriError(f"rule {self.rule.name}: still running after {_MAX_SECONDS} s; make its numbers smaller")
        if self.writer.position > _MAX_CHARS:
            raise CriError(f"rule {self.rule.name}: the trace exceeds {_MAX_CHARS} characters")
        try:
            return function(*args)
        except CriError:
            raise
        except RecursionError:
            raise CriError(f"rule line {node.lineno}: nested too deep") from None
        except (IndexError, ZeroDivisionError, TypeError, ValueError, OverflowError) as error:
            raise CriError(f"rule line {node.lineno}: {error}") from None

    def recite(self, code: str) -> None:
        for kind, text in (("fence", FENCE), ("code", code), ("fence", FENCE)):
            self.writer.put(text)
            self.end_line(kind)

    def end_line(self, kind: str) -> None:
        self.writer.end_line(kind, iteration=self.iteration)

    def read(self, node: ast.AST, written: bool = True) -> None:
        """Writes the line with the values that a statement reads, except those that the effects line shows."""
        for name in names_read(node, written):
            if name in self.variables:
                self.separate()
                self.writer.put(f"{name}=")
                self.variables[name] = self.write_value(name, self.variables[name], "copy")
        if self.writer.length:
            self.end_line("reads")

    def simple(self, node: ast.stmt) -> None:
        self.recite(code_of(node))
        match node:
            case ast.Assign(targets=[ast.Name()], value=ast.Name()):
                pass  # the copied value shows as the new one
            case _:
                self.read(node)
        match node:
            case ast.Assign(targets=[target], value=value):
                self.assign(target, self.evaluate(value))
            case ast.AugAssign(target=target, op=op, value=value):
                old = self.evaluate(as_load(target))
                self.assign(target, self.combine(op, old, self.evaluate(value)))
                if isinstance(old.value, list) and isinstance(target, ast.Name):
                    # in place, as Python does it: other names of the list see the change
                    old.value[:] = cast("list[Any]", self.variables[target.id])
                    self.variables[target.id] = old.value
            case ast.Expr(value=call):
                self.evaluate(call)
        self.write_changed()
        self.end_line("effects")

    def assign(self, target: ast.expr, term: Term) -> None:
        match target:
            case ast.Name(id=name):
                self.separate()
                self.writer.put(f"{name}=")
                role = "carry" if name == "carry" else "digit"
                self.variables[name] = self.write_result(name, term, role)
                self.write_changed(but=name)
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                container, position = self.lookup(name), self.evaluate(index).value
                if not isinstance(container, list) or isinstance(position, list):
                    raise TypeError("assignment to an item of what is not a list")
                self.separate()
                self.writer.put(f"{name}[{position}]=")
                container[position] = self.write_result(f"{name}[]", term, "digit")
                self.changed.append(name)
            case _:  # refused by the checker
                raise AssertionError(ast.dump(target))

    def return_value(self, node: ast.Return) -> None:
        value = cast("ast.expr", node.value)
        values = value.elts if isinstance(value, ast.Tuple) else [value]
        self.recite(code_of(node))
        if not all(isinstance(v, ast.Name) for v in values):
            self.read(node)
        self.writer.put("return ")
        results: list[Value] = []
        for i, part in enumerate(values):
            if i:
                self.writer.put(", ")
            term = self.evaluate(part, writes=False)
            name = part.id if isinstance(part, ast.Name) else "result"
            results.append(self.write_result(name, term, "answer", copied="answer"))
        self.writer.end_line("return", iteration=self.iteration, last=True)
        self.result = tuple(results) if isinstance(value, ast.Tuple) else results[0]

    # --- tests and loops ---

    def while_loop(self, node: ast.While) -> bool:
        outer = self.iteration
        while self.guarded(node, self.while_test, node):
            if self.body(node.body):
                return True
            self.iteration = outer
        return False

    def while_test(self, node: ast.While) -> bool:
        first_line = len(self.writer.lines)
        self.recite(code_of(node))
        entered = self.test(node.test, "loop_count", ENTER_LOOP, END_LOOP)
        if entered:
            self.enter_iteration(first_line)
        return entered

    def enter_iteration(self, first_line: int) -> None:
        """The lines of the test, from `first_line` on, belong to the iteration that they open."""
        self.iteration = self.n_iterations
        self.n_iterations += 1
        lines = self.writer.lines
        lines[first_line:] = [line._replace(iteration=self.iteration) for line in lines[first_line:]]

    def branch(self, node: ast.If, word: str) -> bool:
        if self.guarded(node, self.branch_test, node, word):
            return self.body(node.body)
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            return self.branch(node.orelse[0], "elif")
        return self.body(node.orelse)

    def branch_test(self, node: ast.If, word: str) -> bool:
        self.recite(word + code_of(node).removeprefix("if"))
        return self.test(node.test, "branch", ENTER_BRANCH, SKIP_BRANCH)

    def test(self, node: ast.expr, role: str, yes: str, no: str) -> bool:
        self.read(node)
        if isinstance(node, ast.Compare):
            truth = bool(self.write_term(self.evaluate(node)))
        else:
            truth = self.write_truth(node, role)
        taken = self.decide(truth, role, yes, no)
        self.end_line("test")
        if self.changed:
            self.write_changed()
            self.end_line("effects")
        return taken

    def decide(self, truth: bool, role: str, yes: str, no: str) -> bool:
        self.writer.put(": ")
        decision = self.writer.element("decision", yes if truth else no, role)
        if decision not in (yes, no):
            raise CriError(f"edit.text: {decision!r} is not allowed for 'decision'; must be {yes!r} or {no!r}")
        return decision == yes

    def for_loop(self, node: ast.For) -> bool:
        target, outer = cast("ast.Name", node.target), self.iteration
        items: list[Any] | range = []
        position = 0
        while True:
            first_line = len(self.writer.lines)
            self.recite(code_of(node))
            if position == 0:
                if not isinstance(node.iter, ast.Name):
                    self.read(node.iter, written=False)
                items = self.guarded(node, self.iterable, node.iter)
            entered = self.guarded(node, self.for_test, items, position)
            if not entered:
                return False
            self.enter_iteration(first_line)
            if position >= len(items):
                raise CriError(f"rule line {node.lineno}: nothing left to enter the loop with")
            self.writer.put(f"{target.id}=")
            self.variables[target.id] = self.write_value(target.id, items[position], "copy")
            self.end_line("effects")
            position += 1
            if self.body(node.body):
                return True
            self.iteration = outer

    def iterable(self, node: ast.expr) -> list[Any] | range:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            return range(*(cast("int", self.evaluate(argument, writes=False).value) for argument in node.args))
        value = self.evaluate(node, writes=False).value
        if not isinstance(value, list):
            raise TypeError(f"cannot loop over {value!r}")
        return value

    def for_test(self, items: list[Any] | range, position: int) -> bool:
        self.writer.put("left=")
        if isinstance(items, range):
            self.writer.put(str(items[position:]).replace(" ", ""))
        else:
            left = items[position:]
            items[position:] = cast("list[Any]", self.write_value("left", left, "copy"))
        taken = self.decide(position < len(items), "loop_count", ENTER_LOOP, END_LOOP)
        self.end_line("test")
        return taken
