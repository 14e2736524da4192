"""The storage's one thread: order, errors, and an end."""

import gc
import weakref
from threading import Event, Thread
from threading import enumerate as threads

import pytest

from durabletask_filesystem._thread import OneThread


def named(name: str) -> list[Thread]:
    """Return the live threads of that name."""
    return [thread for thread in threads() if thread.name == name]


def test_jobs_are_done_in_order_and_answered() -> None:
    """Each job's answer is its own, and the next begins when the one before has ended."""
    thread, done = OneThread("order"), list[int]()
    answers = [thread.submit(done.append, number) for number in range(50)]
    thread.shutdown()
    assert [answer.result(0) for answer in answers] == [None] * 50
    assert done == list(range(50))


def test_an_error_is_the_jobs_and_the_thread_goes_on() -> None:
    """What a job raises, whatever it is, meets whoever awaits it and nobody else."""

    def leave() -> None:
        raise SystemExit(3)

    thread = OneThread("errors")
    failed, later = thread.submit(leave), thread.submit(int, "7")
    assert isinstance(failed.exception(5), SystemExit)
    assert later.result(5) == 7
    thread.shutdown()


def test_shutdown_can_be_repeated_and_refuses_what_comes_after() -> None:
    """After the end there is no thread, and a job is refused instead of waiting for ever."""
    thread = OneThread("end")
    thread.shutdown()
    thread.shutdown(cancel_futures=True)
    assert named("end") == []
    with pytest.raises(RuntimeError, match="shut down"):
        thread.submit(int)


def test_shutdown_can_drop_what_has_not_begun() -> None:
    """With `cancel_futures` the job under way ends, and those behind it never begin."""
    thread, begun, go = OneThread("drop"), Event(), Event()

    def work() -> bool:
        begun.set()
        return go.wait(5)

    first, second = thread.submit(work), thread.submit(work)
    assert begun.wait(5)
    thread.shutdown(wait=False, cancel_futures=True)
    go.set()
    assert first.result(5)
    assert second.cancelled()
    thread.shutdown()


def test_a_forgotten_thread_ends_and_keeps_nothing_alive() -> None:
    """An executor that is dropped without a shutdown leaves no thread; a done job is let go."""

    class Big:
        def work(self) -> None:
            pass

    thread, big = OneThread("forgotten"), Big()
    gone = weakref.ref(big)
    thread.submit(big.work).result(5)
    thread.submit(int).result(5)
    del big
    assert gone() is None
    (worker,) = named("forgotten")
    del thread
    gc.collect()
    worker.join(5)
    assert not worker.is_alive()
