"""Ctrl-C is answered at once, also while the main thread waits for compiled code."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from g1jax.training.progress import Progress
from g1jax.training.stopping import STOPPED_NOW, signals
from tests.conftest import REPOSITORY

PROGRAM = """
import hashlib, signal
from g1jax.training.stopping import signals
from g1jax.training.progress import Progress

class Say(Progress):
    def say(self, line):
        print(line, flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background processes with SIGINT ignored
with signals(Say()) as stop:
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)  # compiled code, in which no handler runs
"""


@contextmanager
def busy() -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_two_interrupts_in_compiled_code() -> None:
    with busy() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(2)
        assert process.stdout.readline() == "stopping after this step; Ctrl-C again to stop now\n"
        assert process.poll() is None
        process.send_signal(2)
        assert process.wait(timeout=20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == f"{STOPPED_NOW}\n"


def test_another_thread_leaves_signals_alone() -> None:
    found = []

    def work() -> None:
        with signals(Progress()) as stop:
            found.append(stop.any_requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_second_signal_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
    with signals(Progress()) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)) == before
