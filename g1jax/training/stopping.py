"""Stops a run on SIGINT (Ctrl-C) or SIGTERM: after the current step, and at once on a second signal."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from g1jax.training.processes import any_process
from g1jax.training.progress import Progress

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE = 3.0  # seconds to end in order


@dataclass
class Stop:
    """Whether a signal has requested a stop."""

    is_requested: bool = False

    def any_requested(self) -> bool:
        """Whether any process was signaled. Called by all processes, so that they stop after the same step."""
        self.is_requested = any_process(self.is_requested)
        return self.is_requested


@contextlib.contextmanager
def signals(progress: Progress) -> Iterator[Stop]:
    """Turns SIGTERM and SIGINT into a request to stop after the current step; a second signal stops at once.

    Python runs signal handlers between bytecodes of the main thread, which may wait minutes for a compiled step. So a
    second thread reads the signals from the wakeup file descriptor and prints the answer.
    """
    stop, is_over = Stop(), threading.Event()

    def request(number: int, frame: Any) -> None:
        if stop.is_requested:
            raise KeyboardInterrupt
        stop.is_requested = True

    try:
        before = {number: signal.signal(number, request) for number in _SIGNALS}
    except ValueError:  # not in the main thread, where the caller handles signals
        yield stop
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer)
    threading.Thread(target=_answer, args=(reader, progress, is_over), daemon=True).start()
    try:
        yield stop
    finally:
        is_over.set()
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        for number, handler in before.items():
            signal.signal(number, handler)


def _answer(reader: int, progress: Progress, is_over: threading.Event) -> None:
    """Prints what a signal does. If a second one does not end the run in order, ends the process."""
    is_repeated = False
    with os.fdopen(reader, "rb", buffering=0) as received:
        while number := received.read(1):  # empty: the run is over
            if number[0] not in _SIGNALS:
                continue
            if not is_repeated:
                progress.say("stopping after this step; Ctrl-C again to stop now")
            elif not is_over.wait(_GRACE):
                progress.end()
                print(STOPPED_NOW, file=sys.stderr, flush=True)
                os._exit(130)
            is_repeated = True


STOPPED_NOW = "stopped immediately; the last checkpoint is kept"
