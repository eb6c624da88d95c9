"""Worker processes end with the process that started them, however that ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
_EVERY = 0.2
"""Seconds between two looks at who the parent is."""


def worker_arguments() -> tuple[int, bool]:
    """What `end_with_parent` is to be told: this process, and whether the workers are started by its main thread."""
    return os.getpid(), threading.current_thread() is threading.main_thread()


def end_with_parent(parent: int, by_kernel: bool) -> None:
    """The first call in a worker: makes it end when its parent ends, even if the parent is killed with SIGKILL.

    On Linux the kernel ends it at once. The kernel watches the thread that started the worker, not the process, so this
    is used only if that was the main thread. On all systems, a thread of the worker also checks whether its parent is
    alive. Ctrl-C, which a terminal sends to all its processes, is left to the parent.

    Args:
        parent: process that started this one.
        by_kernel: whether its main thread did.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if by_kernel and sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_end_when_orphaned, args=(parent,), daemon=True).start()


def _end_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY)
    os._exit(1)
