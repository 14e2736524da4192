"""The threads of synchronous steps.

Responsible for so many of them at most, each made when it is first needed.
Refuses to know what runs on one, and to keep a program from ending: the threads
of a `ThreadPoolExecutor` are joined when Python ends, so a call that hangs
would hold a drained host until somebody kills it. A step that is cut off in
this way has no record, and runs again, as after every death.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Job = tuple[Future[Any], Callable[[], Any]]


class StepThreads(Executor):
    """Runs calls on daemon threads, `count_max` at once; the others wait in their order."""

    def __init__(self, count_max: int, name: str) -> None:
        self._count_max = count_max
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._idle = Semaphore(0)
        self._threads: list[Thread] = []
        self._ended = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Hand a call in, from the loop's thread; its answer is what the future gets.

        Raises:
            RuntimeError: The threads were shut down, or the machine gives no
                thread; the call will not run.
        """
        if self._ended:
            raise RuntimeError("the threads were shut down")
        # First: a call that waits already would run all the same where no thread is to be had.
        if len(self._threads) < self._count_max and not self._idle.acquire(blocking=False):
            name = f"{self._name}_{len(self._threads)}"
            thread = Thread(target=_work, args=(self._jobs, self._idle), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        future: Future[T] = Future()
        self._jobs.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end each thread after what it does. Safe to repeat.

        Args:
            wait: Until they have ended.
            cancel_futures: Drop the calls that have not begun.
        """
        self._ended = True
        while cancel_futures:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None:
                job[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        if wait:
            for thread in self._threads:
                thread.join()


def _work(jobs: "SimpleQueue[_Job | None]", idle: Semaphore) -> None:
    while (job := jobs.get()) is not None:
        future, call = job
        if future.set_running_or_notify_cancel():
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001  (it is whoever awaits the call's)
                future.set_exception(error)
                del error
            else:
                future.set_result(result)
                del result
        # Nothing may be kept alive while the next call is waited for.
        del job, future, call
        idle.release()
