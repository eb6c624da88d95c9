"""The measurements of `cri.studies.performance.study` by name, one generator of table rows a piece of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cri.studies.performance import decoding as performance_decoding
from cri.studies.performance import inside as performance_inside
from cri.studies.performance import pretrained as performance_pretrained
from cri.studies.performance import rule_traces as performance_rules
from cri.studies.performance import training as performance_training
from cri.studies.performance.rows import Row

if TYPE_CHECKING:
    from cri.studies.performance.config import PerformanceConfig

PARTS: dict[str, Callable[[PerformanceConfig, str], Iterator[Row]]] = {
    "nano": performance_training.nano,
    "decoding": performance_decoding.decoding,
    "trace_decoding": performance_decoding.trace_decoding,
    "activations": performance_inside.activations,
    "patching": performance_inside.patching,
    "attribution": performance_inside.attribution,
    "paper": performance_training.paper,
    "traces": performance_training.traces,
    "rule_traces": performance_rules.rule_traces,
    "growth": performance_training.growth,
    "pretrained": performance_pretrained.pretrained,
    "replicas": performance_training.replicas,
}
"""The cheap ones first, so that a time limit costs as few rows as can be."""
