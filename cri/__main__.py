"""The `cri` command: one word a question, and `python -m cri` likewise. What a word needs is imported only then."""

from __future__ import annotations

import contextlib
import importlib
import io
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
WITHOUT_DRY_RUN = {"performance": "it measures trainings and keeps none", "zero_shot": "it trains nothing"}
"""Studies that `--dry-run` has nothing to say about, and why."""
TRAINING = ("train", "sweep", "map", "neighbors", "attribute", "edit", "study")
"""Commands that train what is missing."""
RUNS_HELP = "list (ls), show, compare or remove (rm) runs"

RUNS_USAGE = """usage: cri runs [ls | show RUN | compare RUN RUN ... | rm RUN ...] [--runs FOLDER]

RUN is a folder, or the beginning of a name below FOLDER (runs).

example: cri runs show addition-direct"""

EXAMPLES = """
examples:
  cri train --task mod_addition --split random --seed 1
  cri map tasks
  cri neighbors --seeds 0 1 2
  cri study counterfactual_removal cpu --dry-run
  cri bench --scores mine.npy
  cri train --plugin my_task.py --task times
  cri runs ls

--dry-run after a command that trains ({training}) says what it would train, for how
long and how large, and ends. --plugin FILE.py runs a file of your own first, whose tasks and attribution methods
every command then knows by name. Runs go to runs/, tables and figures to build/; git ignores both.
"""


def usage() -> str:
    """The help text."""
    lines = ["usage: cri COMMAND [options]    (cri COMMAND --help explains each)", ""]
    rows = {name: text for name, (_, text) in COMMANDS.items()}
    rows |= {"study NAME": "any study by name: " + ", ".join(studies()), "runs": RUNS_HELP,
             "completion": "print what completes these words in bash, zsh or fish"}  # fmt: skip
    lines += [f"  {name:<12} {text}" for name, text in rows.items()]
    return "\n".join(lines) + "\n" + EXAMPLES.format(training=", ".join(TRAINING))


def studies() -> list[str]:
    """Names of the studies: the folders of `cri/studies` that can be run."""
    folder = Path(__file__).parent / "studies"
    return sorted(path.parent.name for path in folder.glob("*/__main__.py"))


def _with_plugins(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--plugin FILE`, whose file is loaded."""
    words = list(arguments)
    while "--plugin" in words:
        from cri.tasks.plugins import load_plugin

        at = words.index("--plugin")
        if at + 1 >= len(words):
            raise CriError("plugin: --plugin needs a Python file")
        load_plugin(words[at + 1])
        del words[at : at + 2]
    return words


def _call(module: str, name: str, arguments: Sequence[str]) -> None:
    """A module's own command, as if it had been called with these arguments."""
    if module.startswith("cri.studies."):
        module += ".study" if (Path(__file__).parent / "studies" / module[12:] / "study.py").exists() else ".__main__"
    words = _with_plugins(arguments)
    if "--dry-run" in words:
        study = name.removeprefix("study ")
        if name.split()[0] not in TRAINING or study in WITHOUT_DRY_RUN:
            raise CriError(f"dry-run: {name}: {WITHOUT_DRY_RUN.get(study, 'it trains nothing')}")
        from cri.training.forecast import DRY_RUN

        words.remove("--dry-run")
        DRY_RUN.set(True)
    sys.argv = [f"cri {name}", *words]
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


def _help(words: Sequence[str]) -> str:
    """The help text of a command."""
    out = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):
        main([*words, "--help"])
    return out.getvalue()


def _completion(name: str, rest: Sequence[str]) -> None:
    from cri.cli import completion

    if name == "complete":
        words = [*COMMANDS, "study", "runs", "completion"]
        print("\n".join(completion.suggestions(rest, words, studies(), _help)))
    elif not rest or rest[0] in ("--help", "-h"):
        print(completion.USAGE)
    else:
        print(completion.script(rest[0]))


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
        elif name in ("complete", "completion"):
            _completion(name, rest)
        elif name in COMMANDS:
            _call(COMMANDS[name][0], name, rest)
        else:
            raise CriError(f"command: unknown {name!r}; choose from {', '.join([*COMMANDS, 'study', 'runs'])}")
    except CriError as error:
        from cri.cli import fail

        fail(str(error))


if __name__ == "__main__":
    main()
