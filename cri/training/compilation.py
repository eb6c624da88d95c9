"""Forward passes as graphs of plain operations, whole training steps as CUDA graphs.

A step captured as a CUDA graph is one launch, with no host work in between. A forward pass traced to plain
operations has none of transformers' Python left in it, and compiles whatever the model.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cri.models.device import give_memory_back


class Traced:
    """`function` of tensors (and containers of them), traced once for each set of shapes.

    With `compiled`, each trace goes through torch.compile; where that fails, or gives values or gradients that differ
    from the trace's by more than a share `tolerance` of their norm, a warning says so and the trace is run as it is.
    `context` is entered around tracing (autocast, for example: its casts become part of the trace).
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        context: Callable[[], contextlib.AbstractContextManager[Any]],
        compiled: bool,
        tolerance: float = 1e-3,
    ) -> None:
        self.function = function
        self.context = context
        self.compiled = compiled
        self.tolerance = tolerance
        self._traces: dict[Hashable, Callable[..., Tensor]] = {}  # what is called
        self._graphs: dict[Hashable, Callable[..., Tensor]] = {}  # the same uncompiled

    def __call__(self, *args: Any) -> Tensor:
        key = tuple(tuple(a.shape) for a in args if isinstance(a, Tensor))
        new = key not in self._traces
        if new:
            graph = self._trace(*args)
            self._graphs[key] = graph
            self._traces[key] = torch.compile(graph, dynamic=False) if self.compiled else graph
        try:
            if new and self.compiled:
                self._check(key, *args)
            return self._traces[key](*args)
        except Exception as error:
            if not self.compiled or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"torch.compile failed, going on without: {reason}", stacklevel=2)
        self.compiled = False
        self._traces = dict(self._graphs)
        return self(*args)

    def _check(self, key: Hashable, *args: Any) -> None:
        """Runs forward and backward pass compiled, where a failure is still caught, and compares them with the trace
        itself: a compiler may be wrong without a word. Raises `RuntimeError` if they differ by more than rounding."""
        inputs = [a for a in tree_leaves(args) if isinstance(a, Tensor) and a.requires_grad]

        def values(function: Callable[..., Tensor]) -> list[Tensor]:
            out = function(*args)
            if not (inputs and torch.is_grad_enabled()):
                return [out.detach()]
            return [out.detach(), *torch.autograd.grad(out.sum(), inputs, allow_unused=True, materialize_grads=True)]

        found = values(self._traces[key])
        try:
            expected = values(self._graphs[key])
        except torch.cuda.OutOfMemoryError:
            return  # uncompiled, a step may need more than there is
        of_largest = 1e-3 * max((float(e.norm()) for e in expected[1:]), default=0.0)
        for f, e in zip(found, expected, strict=True):
            if not bool((f - e).norm() <= self.tolerance * max(float(e.norm()), of_largest)):
                raise RuntimeError("its values or gradients differ from the uncompiled ones")

    def _trace(self, *args: Any) -> Callable[..., Tensor]:
        from torch.fx.experimental.proxy_tensor import make_fx

        with torch.no_grad(), self.context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet")
            graph = make_fx(self.function)(*args)
        graph.graph.eliminate_dead_code(is_impure_node=_changes_something)
        graph.recompile()
        return graph


def _changes_something(node: Any) -> bool:
    """Whether a traced operation writes to its inputs (dropout fills its mask in place)."""
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or (schema is not None and schema.is_mutable)


class GraphedStep:
    """Calls `step(key)`; on CUDA each key is captured as a graph after a few ordinary calls, then replayed.

    `step` must read and write the same tensors every time, allocate nothing that outlives it, and never
    wait for the device. The ordinary calls are steps like any other (nothing is run twice), so that a graph
    changes no result. Where capture fails, a warning says so and the steps go on without.
    """

    def __init__(self, step: Callable[[Hashable], None], device: torch.device, warmup: int = 3) -> None:
        self.step = step
        self.device = device
        self.warmup = warmup
        self.enabled = device.type == "cuda"
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.calls: dict[Hashable, int] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.enabled else None
        self._stream = torch.cuda.Stream(device) if self.enabled else None

    def __call__(self, key: Hashable) -> None:
        if not self.enabled:
            self.step(key)
            return
        if key in self.graphs:
            self.graphs[key].replay()
            return
        if self.calls.get(key, 0) < self.warmup:
            self.calls[key] = self.calls.get(key, 0) + 1
            assert self._stream is not None
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):  # capture needs steps to have run off the default stream
                self.step(key)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                self.step(key)
        except RuntimeError as error:
            reason = str(error)
        else:
            self.graphs[key] = graph
            graph.replay()
            return
        warnings.warn(f"CUDA graph not captured, steps run one kernel at a time: {reason}", stacklevel=2)
        self.enabled = False
        torch.cuda.synchronize()
        self.release()  # of the other widths: none is replayed any more
        del graph
        give_memory_back(self.device)
        self.step(key)

    def release(self) -> None:
        """Gives the graphs' memory back now, whatever else still refers to this object."""
        if self.graphs:
            torch.cuda.synchronize()
            for graph in self.graphs.values():
                graph.reset()
            self.graphs.clear()
