"""Running a coroutine from code that is not one, whether or not an event loop runs in the thread, as in a notebook."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end in an event loop of its own, and gives what it gives or raises what it raises.

    Where a loop runs in this thread already, this is a loop in another thread, which this one waits for. Ctrl-C cancels
    the coroutine and waits until it has ended, in both.
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
        self._has_ended = threading.Event()  # an interrupted Thread.join takes the thread for ended

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
