"""One thread for one storage: takes a job, does it, takes the next.

What `ThreadPoolExecutor` does for many threads, for one, with half the locks
on the way: a lone step waits for both ways. Knows nothing of what it is given.
"""

import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Job = tuple[Future[Any], Callable[[], Any]]


class OneThread(Executor):
    """Does jobs in the order in which they were handed in.

    The thread ends with `shutdown`, or when nobody has the object any more. It
    does not keep a program from ending: a write that is cut off then was not
    acknowledged to anybody.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._jobs.put, None)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Hand a job in; its answer is what the future gets.

        Raises:
            RuntimeError: The thread was shut down.
        """
        if not self._end.alive:
            raise RuntimeError("the thread was shut down")
        future: Future[T] = Future()
        self._jobs.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread when all jobs that were handed in are done. Safe to repeat.

        Args:
            wait: Until then.
            cancel_futures: Drop the jobs that have not begun.
        """
        while cancel_futures and not self._jobs.empty():
            job = self._jobs.get()
            if job is None:  # the end, from an earlier call
                self._jobs.put(None)
                break
            job[0].cancel()
        self._end()
        if wait:
            self._thread.join()


def _work(jobs: "SimpleQueue[_Job | None]") -> None:
    while True:
        job = jobs.get()
        if job is None:
            return
        future, call = job
        if future.set_running_or_notify_cancel():
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001  (it is whoever awaits the job's)
                future.set_exception(error)
                del error
            else:
                future.set_result(result)
                del result
        # Nothing may be kept alive while the next job is waited for.
        del job, future, call
