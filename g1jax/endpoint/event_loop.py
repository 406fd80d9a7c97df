"""Runs a coroutine from synchronous code, also in a thread with a running event loop, as in a notebook."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end in a new event loop; returns or raises what it does.

    If this thread already runs an event loop, the new one runs in another thread, and this one waits for it. In both
    cases Ctrl-C cancels the coroutine and waits until it has ended.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main)
    return _InThread(main).wait()


class _InThread:
    def __init__(self, main: Coroutine[Any, Any, Any]) -> None:
        self._main = main
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._is_cancelled = False
        self._has_ended = threading.Event()  # an interrupted Thread.join marks the thread as ended

    def wait(self) -> Any:
        threading.Thread(target=self._run, name="g1jax endpoint", daemon=True).start()
        try:
            self._has_ended.wait()
        except BaseException:
            self._is_cancelled = True
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._has_ended.wait()
            raise
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = asyncio.run(self._run_main())
        except BaseException as error:
            self._error = error
        finally:
            self._has_ended.set()

    async def _run_main(self) -> Any:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._is_cancelled:
            self._main.close()
            raise asyncio.CancelledError
        return await self._main
