"""Independent jobs: one after the other in this process, one a core, or on a Ray cluster.

Sweeps, studies and banks of retrained models all train many models that do not need each other. They say what one
job is; this module decides where it runs. What a job computes does not depend on that: each has one thread.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from cri.errors import CriError, MissingDependencyError, out_of_range, unknown_name
from cri.training.lifetime import end_with_parent, worker_arguments

Backend = Literal["processes", "ray"]
BACKENDS = ("processes", "ray")
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """The outcome of one job: its value, or the error that ended it. An unexpected error carries the
    traceback of its process as a note."""

    value: Value | None
    error: Exception | None

    def get(self) -> Value:
        """The value; raises the job's error where it failed."""
        if self.error is not None:
            raise self.error
        return self.value  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Workers:
    """Where jobs run.

    Attributes:
        backend: `processes` of this machine, or tasks of the `ray` cluster that RAY_ADDRESS names (of a local one
            without it). Files that jobs write must then lie in a folder that all its machines share.
        jobs: how many at once; 1 runs them in this very process. 0 is one a core on CPU and one on a GPU, with Ray as
            many as the cluster takes.
        gpus_per_job: with Ray, the share of a GPU that each job is given (0.25 puts four jobs on one).
        device: that each job computes on (`auto`, `cpu`, `cuda`, ...).

    Raises `CriError` for other values, `MissingDependencyError` where Ray is asked for and absent.
    """

    backend: Backend = "processes"
    jobs: int = 0
    gpus_per_job: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise unknown_name("backend", self.backend, BACKENDS)
        if self.jobs < 0:
            raise out_of_range("jobs", self.jobs, "at least 0 (0 for one a core)")
        if self.gpus_per_job < 0:
            raise out_of_range("gpus_per_job", self.gpus_per_job, "at least 0")
        if self.backend == "ray":
            _ray()

    @property
    def here(self) -> bool:
        """Whether jobs run on this machine, so that a device can be looked for before they start."""
        return self.backend == "processes"

    def at_once(self) -> int:
        """How many jobs run at the same time, given enough of them."""
        if self.jobs:
            return self.jobs
        if self.here:
            return (os.cpu_count() or 1) if self.device == "cpu" else 1
        with _cluster() as ray:
            resources = ray.cluster_resources()
        slots = int(resources.get("CPU", 1))
        if self.gpus_per_job:
            slots = min(slots, int(resources.get("GPU", 0) / self.gpus_per_job))
        return max(1, slots)

    def run(
        self,
        function: Callable[[Item], Value],
        items: Sequence[Item],
        on_done: Callable[[Item], Any] = lambda item: None,
    ) -> list[Outcome[Value]]:
        """`function(item)` for each item. A job that fails does not end the others.

        Args:
            function: the job; it and what it is bound to must be importable where it runs.
            items: one a job.
            on_done: called in this process with the item of each job that has ended, in the order in which they end.

        Returns one outcome an item, in the items' order.
        """
        outcomes: dict[int, Outcome[Value]] = {}
        with contextlib.closing(self._unordered(function, items)) as ended:
            for index, outcome in ended:
                outcomes[index] = outcome
                on_done(items[index])
        return [outcomes[index] for index in range(len(items))]

    def _unordered(
        self, function: Callable[[Item], Value], items: Sequence[Item]
    ) -> Generator[tuple[int, Outcome[Value]], None, None]:
        if not self.here:
            return self._on_ray(function, items)
        n_processes = min(self.at_once(), len(items))
        if n_processes <= 1:
            return (_attempt(function, index, item) for index, item in enumerate(items))
        return _in_processes(function, items, n_processes)

    def _on_ray(
        self, function: Callable[[Item], Value], items: Sequence[Item]
    ) -> Generator[tuple[int, Outcome[Value]], None, None]:
        with _cluster() as ray:
            # Ray starts a job again elsewhere when its machine is lost; what the job had finished is reused there
            remote = ray.remote(_attempt).options(num_cpus=1, num_gpus=self.gpus_per_job)
            waiting, running = list(enumerate(items))[::-1], {}
            while waiting or running:
                while waiting and len(running) < (self.jobs or len(items)):
                    index, item = waiting.pop()
                    running[remote.remote(function, index, item)] = index
                for done in ray.wait(list(running))[0]:
                    index = running.pop(done)
                    try:
                        yield ray.get(done)
                    except ray.exceptions.RayError as error:  # its process or machine was lost, again and again
                        yield index, Outcome(None, CriError(f"backend: a job was lost by Ray ({error})"))


def _in_processes(
    function: Callable[[Item], Value], items: Sequence[Item], n_processes: int
) -> Generator[tuple[int, Outcome[Value]], None, None]:
    """Jobs in processes of this machine, which end with this one. When one of them is killed (by the system, which ran
    out of memory, or by somebody), all are started again for the jobs that had not ended, twice at most without a job
    ending in between."""
    import joblib
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    waiting, killed = dict(enumerate(items)), 0
    while waiting and killed < 3:
        parallel = joblib.Parallel(
            n_jobs=n_processes,
            return_as="generator_unordered",
            initializer=end_with_parent,
            initargs=worker_arguments(),
        )
        try:
            calls = (joblib.delayed(_attempt)(function, index, item) for index, item in list(waiting.items()))
            for index, outcome in parallel(calls):  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]
                del waiting[index]
                killed = 0
                yield index, outcome
        except TerminatedWorkerError:
            killed += 1
        except BaseException:  # Ctrl-C, or nobody asks for the rest
            get_reusable_executor(reuse="auto", kill_workers=True).shutdown(wait=True, kill_workers=True)
            raise
    for index in waiting:
        yield index, Outcome(None, CriError("jobs: its process was killed, perhaps as memory ran out (see --jobs)"))


def _attempt(function: Callable[[Item], Value], index: int, item: Item) -> tuple[int, Outcome[Value]]:
    """One job, where it runs."""
    with _one_thread():
        try:
            return index, Outcome(function(item), None)
        except CriError as error:
            return index, Outcome(None, error)
        except Exception as error:  # one broken job must not end the others
            error.add_note(traceback.format_exc())
            return index, Outcome(None, error)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread a job: the same sums whatever the number of cores, and no two jobs on one core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read on import; nothing is sent anywhere unasked
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("backend: needs the package ray (pip install ray)") from error
    return ray


@contextlib.contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected; a cluster that was joined or started here is left again, and its unfinished jobs end."""
    ray = _ray()
    joined = not ray.is_initialized()
    if joined:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    try:
        yield ray
    finally:
        if joined:
            ray.shutdown()


def progress_bar(total: int, desc: str, unit: str, progress: bool = True, **options: Any) -> Any:
    """A bar on stderr; written to a file rather than a terminal, a line every ten seconds."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 10,
        **options,
    )
