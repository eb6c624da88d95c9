"""Case or Rule, from the Inside: do transformers answer arithmetic from cases or by a rule?

In five lines:

    import cri

    run = cri.load_run(cri.train_run(cri.recipe("addition", task_params={"size": 30}, split_params={"half_side": 3})))
    case = run.case(15, 15)
    run.logit_lens(case), run.nearest(case), run.influence(case), run.map()

Names are imported when they are first used: `import cri` itself takes no torch.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cri.attribution.methods import attribution_method as attribution_method
    from cri.config import RunConfig as RunConfig
    from cri.errors import CriError as CriError
    from cri.formats.rules.own import rule as rule
    from cri.opened import OpenRun as OpenRun
    from cri.opened import load_run as load_run
    from cri.retraining.benchmark import benchmark as benchmark
    from cri.retraining.benchmark import ground_truth as ground_truth
    from cri.retraining.benchmark import ground_truths as ground_truths
    from cri.tasks.base import RuleCode as RuleCode
    from cri.tasks.base import SquareGrid as SquareGrid
    from cri.tasks.base import Task as Task
    from cri.tasks.plugins import load_plugin as load_plugin
    from cri.tasks.registry import task as task
    from cri.training.recipes import recipe as recipe
    from cri.training.runs import train_run as train_run

_PLACES = {
    "CriError": "cri.errors",
    "OpenRun": "cri.opened",
    "RunConfig": "cri.config",
    "benchmark": "cri.retraining.benchmark",
    "ground_truth": "cri.retraining.benchmark",
    "ground_truths": "cri.retraining.benchmark",
    "load_run": "cri.opened",
    "RuleCode": "cri.tasks.base",
    "SquareGrid": "cri.tasks.base",
    "Task": "cri.tasks.base",
    "attribution_method": "cri.attribution.methods",
    "load_plugin": "cri.tasks.plugins",
    "rule": "cri.formats.rules.own",
    "task": "cri.tasks.registry",
    "recipe": "cri.training.recipes",
    "train_run": "cri.training.runs",
}

__all__ = [
    "CriError",
    "OpenRun",
    "RuleCode",
    "RunConfig",
    "SquareGrid",
    "Task",
    "attribution_method",
    "benchmark",
    "ground_truth",
    "ground_truths",
    "load_plugin",
    "load_run",
    "recipe",
    "rule",
    "task",
    "train_run",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'cri' has no attribute {name!r}; it has {', '.join(_PLACES)}")


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]


# in a notebook, a library below says so of its progress bars, which are as good without widgets
warnings.filterwarnings("ignore", "IProgress not found")

if sys.argv[:1] == ["-m"] or (sys.argv and sys.argv[0].endswith("/cri")):  # a command, whose modules come next
    # nothing is begun while they are imported, so an end needs neither tidying nor a traceback
    import signal

    from cri.cli import ENDING, leave_at_once

    for _number in ENDING:
        if signal.getsignal(_number) != signal.SIG_IGN:
            signal.signal(_number, leave_at_once)
