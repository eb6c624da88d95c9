"""The `cri` command: one word a question, and `python -m cri` likewise. What a word needs is imported only then."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cri.errors import CriError

COMMANDS = {
    "train": ("cri.train", "train one run"),
    "sweep": ("cri.sweep", "train many: tasks x formats x tokenizers x models x splits x seeds"),
    "map": ("cri.studies.lso_map", "where does the model fail? accuracy of every case"),
    "neighbors": ("cri.studies.neighbor_attribution", "which training cases does a held-out prediction rest on?"),
    "attribute": ("cri.studies.attribution_quality", "which attribution method predicts what retraining does?"),
    "bench": ("cri.retraining.bench", "does your own attribution method predict what retraining does?"),
    "edit": ("cri.studies.rule_steps", "does the output follow an edited step or rule?"),
    "explore": ("cri.explore.command", "one page of runs, to look at in a browser"),
    "export": ("cri.export", "write a task, format and split as JSON lines"),
    "score": ("cri.score", "score answers that were produced elsewhere"),
}
"""Word -> module with a `main`, and what it does."""
RUNS_HELP = "list (ls), show, compare or remove (rm) runs"

RUNS_USAGE = """usage: cri runs [ls | show RUN | compare RUN RUN ... | rm RUN ...] [--runs FOLDER]

RUN is a folder, or the beginning of a name below FOLDER (runs).

example: cri runs show addition-direct"""

EXAMPLES = """
examples:
  cri train --task mod_addition --split random --seed 1
  cri map tasks
  cri neighbors --seeds 0 1 2
  cri study counterfactual_removal cpu
  cri runs ls
"""


def usage() -> str:
    """The help text."""
    lines = ["usage: cri COMMAND [options]    (cri COMMAND --help explains each)", ""]
    rows = {name: text for name, (_, text) in COMMANDS.items()}
    rows |= {"study NAME": "any study by name: " + ", ".join(studies()), "runs": RUNS_HELP}
    lines += [f"  {name:<12} {text}" for name, text in rows.items()]
    return "\n".join(lines) + "\n" + EXAMPLES


def studies() -> list[str]:
    """Names of the studies: the folders of `cri/studies` that can be run."""
    folder = Path(__file__).parent / "studies"
    return sorted(path.parent.name for path in folder.glob("*/__main__.py"))


def _call(module: str, name: str, arguments: Sequence[str]) -> None:
    """A module's own command, as if it had been called with these arguments."""
    if module.startswith("cri.studies."):
        module += ".study" if (Path(__file__).parent / "studies" / module[12:] / "study.py").exists() else ".__main__"
    sys.argv = [f"cri {name}", *arguments]
    importlib.import_module(module).main()


def _runs(arguments: Sequence[str]) -> None:
    from cri.training import listing

    words = {"ls": "list"}
    out = Path("runs")
    rest = list(arguments) or ["ls"]
    if "--runs" in rest:
        at = rest.index("--runs")
        if at + 1 >= len(rest):
            raise CriError("runs: --runs needs a folder")
        out = Path(rest[at + 1])
        del rest[at : at + 2]
    action, names = (rest[0], rest[1:]) if rest else ("ls", [])
    if action in ("--help", "-h"):
        print(RUNS_USAGE)
        return
    actions: dict[str, Callable[[], str]] = {
        "list": lambda: listing.listing(out),
        "show": lambda: "\n".join(listing.shown(listing.find_run(out, name)) for name in names),
        "compare": lambda: listing.compared([listing.find_run(out, name) for name in names]),
        "rm": lambda: "\n".join(listing.remove(path) for path in [listing.find_run(out, name) for name in names]),
    }
    action = words.get(action, action)
    if action not in actions:
        raise CriError(f"runs: unknown {action!r}; choose from ls, show, compare, rm")
    if action in ("show", "rm") and not names:
        raise CriError(f"runs: {action} needs a run's folder or name; cri runs ls lists them")
    print(actions[action]())


def main(argv: Sequence[str] | None = None) -> None:
    """The `cri` command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage())
        return
    name, rest = words[0], words[1:]
    try:
        if name == "runs":
            _runs(rest)
        elif name == "study":
            if not rest or rest[0] not in studies():
                raise CriError(f"study: {rest[0] if rest else 'no name'!r}; choose from {', '.join(studies())}")
            _call(f"cri.studies.{rest[0]}", f"study {rest[0]}", rest[1:])
        elif name in COMMANDS:
            _call(COMMANDS[name][0], name, rest)
        else:
            raise CriError(f"command: unknown {name!r}; choose from {', '.join([*COMMANDS, 'study', 'runs'])}")
    except CriError as error:
        from cri.cli import fail

        fail(str(error))


if __name__ == "__main__":
    main()
