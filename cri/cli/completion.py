"""Shell completion of the `cri` command: scripts for bash, zsh and fish, which ask `cri complete` for the next word."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cri.errors import unknown_name

_BASH = """_cri() {
  local IFS=$'\\n'
  local offered="$(cri complete "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)"
  COMPREPLY=($(compgen -W "$offered" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _cri cri"""
SCRIPTS = {
    "bash": _BASH,
    "zsh": f"autoload -Uz bashcompinit && bashcompinit\n{_BASH}",
    "fish": 'complete -c cri -a "(cri complete (commandline -opc)[2..-1] 2>/dev/null)"',
}
USAGE = """usage: cri completion [bash | zsh | fish]

Prints what makes the shell complete commands, studies, presets and options.

examples:
  cri completion bash >> ~/.bashrc
  cri completion zsh >> ~/.zshrc
  cri completion fish > ~/.config/fish/completions/cri.fish"""


def script(shell: str) -> str:
    """What the shell is to read; raises `CriError` for another shell."""
    if shell not in SCRIPTS:
        raise unknown_name("shell", shell, SCRIPTS)
    return SCRIPTS[shell]


def offered(help_text: str) -> list[str]:
    """Presets and options of a command, from its help."""
    presets = re.search(r"Presets \(first argument\): ([^;]+);", " ".join(help_text.split()))
    options = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", help_text))
    return [*(presets[1].split(", ") if presets else ()), *options]


def suggestions(
    words: Sequence[str], commands: Sequence[str], studies: Sequence[str], help_of: Callable[[Sequence[str]], str]
) -> list[str]:
    """What may follow `words`; `help_of` gives the help text of a command."""
    if not words:
        return list(commands)
    if words[0] == "study" and len(words) == 1:
        return list(studies)
    if words[0] == "runs" and len(words) == 1:
        return ["ls", "show", "compare", "rm", "--runs"]
    if words[0] == "completion":
        return list(SCRIPTS)
    if words[0] not in commands or words[0] == "runs":
        return []
    return offered(help_of(words[: 2 if words[0] == "study" else 1]))
