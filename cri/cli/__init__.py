"""Command lines from frozen dataclasses: presets, one-line errors, exit code 2."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from cri.checks import check_command
from cri.errors import CriError

Config = TypeVar("Config")
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command."""


def _one_line(box: str) -> str:
    """tyro's boxed, several-line error as one line; its heading is left out where the text says it again."""
    words = re.sub(r"[╭╮╰╯│─┌┐└┘]+", " ", box)
    words = re.sub(r"\s+", " ", words).strip()
    return re.sub(r"^([A-Z]\w+ \w+) (?=\1)", "", words)


def parse(
    config_type: type[Config],
    description: str,
    argv: Sequence[str],
    presets: Mapping[str, Config] | None = None,
    default: Config | None = None,
    prog: str | None = None,
) -> Config:
    """`argv` as a `config_type`, values that are not given from `default`. With `presets`, the first argument may name
    one, whose values become the defaults; without a name the first preset is taken. Exits with code 2 and one line on
    bad input."""
    import tyro

    args = list(argv)
    if presets:
        name = args.pop(0) if args and not args[0].startswith("-") else next(iter(presets))
        if name not in presets:
            fail(f"preset: unknown {name!r}; choose from {', '.join(presets)}")
        default = presets[name]
        description += f"\n\nPresets (first argument): {', '.join(presets)}; default {next(iter(presets))}."
        lines = [prog or "", *(f"{prog} {preset}" for preset in [*presets][1:2]), f"{prog} --out ."]
        description += "\n\nExamples:\n  " + "\n  ".join(lines)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            if default is None:
                return tyro.cli(config_type, description=description, args=args, prog=prog)
            return tyro.cli(config_type, description=description, args=args, prog=prog, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        fail(_one_line(errors.getvalue()))


def key_values(field: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as a dict, values read as JSON (`half_side=5`, `center=[20,30]`)."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise CriError(f"{field}: {pair!r} is not KEY=VALUE (for example half_side=5 or center=[20,30])")
        if key in out:
            raise CriError(f"{field}: {key} is given twice")
        try:
            out[key] = json.loads(value)
        except (ValueError, RecursionError):
            raise CriError(f"{field}: {value[:80]!r} is no value of {key}; give a number or a list, as JSON") from None
    return out


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


def run_command(
    config_type: type[Config],
    function: Callable[[Config], object],
    description: str | None = None,
    argv: Sequence[str] | None = None,
    presets: Mapping[str, Config] | None = None,
    default: Config | None = None,
    prog: str | None = None,
) -> None:
    """Parses the command line into a config and calls `function` with it.

    A `CriError` becomes one line on stderr and exit code 2. Ctrl-C, SIGTERM and SIGHUP end the command in the same way:
    what is being written is dropped, workers are ended, one line on stderr, exit code 128 plus the signal's number (130
    for Ctrl-C).
    """
    called = sys.argv[0] if sys.argv[0].startswith("cri ") else prog  # help says what was typed
    config = parse(config_type, description or "", sys.argv[1:] if argv is None else argv, presets, default, called)
    try:
        check_command(config)
        with _signals_raised(), _warnings_above_bars():
            function(config)
    except CriError as error:
        _end_bars()
        fail(str(error))
    except KeyboardInterrupt as stop:
        _end_bars()
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        print("interrupted; run the same command again to resume", file=sys.stderr)
        raise SystemExit(128 + number) from None


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command, raised where it was received.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """The signals that end a command raise `Interrupted` in the block; a second one does not wait for the tidying."""

    def received(number: int, frame: object) -> NoReturn:
        for each in before:
            signal.signal(each, leave_at_once)
        raise Interrupted(number)

    # a signal that the starting process had it ignore (nohup) stays ignored; threads have no handlers
    main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in ENDING if main and signal.getsignal(each) != signal.SIG_IGN}
    for each in before:
        signal.signal(each, received)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _warnings_above_bars() -> Iterator[None]:
    """Warnings of the block are written above the progress bars, not through them."""
    former = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        tqdm = sys.modules.get("tqdm")
        if file is not None or tqdm is None:
            former(message, category, filename, lineno, file, line)
        else:
            tqdm.tqdm.write(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = former


def leave_at_once(number: int, frame: object = None) -> NoReturn:
    """Ends the process without tidying: nothing is begun yet, or somebody is in a hurry."""
    os.write(2, b"interrupted; run the same command again to resume\n")
    os._exit(128 + number)


def _end_bars() -> None:
    """Ends the line of each progress bar that an error cut short, so that the message has one of its own."""
    tqdm = sys.modules.get("tqdm")
    for bar in list(getattr(tqdm.tqdm, "_instances", ())) if tqdm else ():
        bar.close()
