"""Command lines from frozen dataclasses: presets, one-line errors, exit code 2."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from cri.errors import CriError

Config = TypeVar("Config")


def _one_line(box: str) -> str:
    """tyro's boxed, several-line error as one line."""
    words = re.sub(r"[╭╮╰╯│─┌┐└┘]+", " ", box)
    return re.sub(r"\s+", " ", words).strip()


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
        try:
            if not (key and equals):
                raise ValueError
            out[key] = json.loads(value)
        except ValueError:
            raise CriError(f"{field}: {pair!r} is not KEY=VALUE (for example half_side=5 or center=[20,30])") from None
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

    A `CriError` becomes one line on stderr and exit code 2; Ctrl-C exits with 130 and no traceback.
    """
    config = parse(config_type, description or "", sys.argv[1:] if argv is None else argv, presets, default, prog)
    try:
        function(config)
    except CriError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        raise SystemExit(130) from None
