"""What steps do to the world, and what user code is given, as lines of a history.

The world's own account: it is written by the steps and not by the engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from durabletask._process import Process
from durabletask._steps import current_step
from durabletask.testing._history_file import History
from durabletask.testing._history_records import Execute, Phase, See, digest

T = TypeVar("T")


class Effects:
    """The outside world as the steps of a process touch it, in a history of what they did.

    Args:
        history: May be that of the `RecordingStorage`, or another file.
    """

    def __init__(self, history: History) -> None:
        self._history = history

    def __call__(self) -> None:
        """Have the effect of the present step, in one instant; async steps and sync ones.

        Raises:
            WrongContextError: The caller is not inside a step.
        """
        with self.during():
            pass

    def saw(self, proc: Process, key: str, value: T) -> T:
        """Write down what user code was given by a durable call, and return it.

        Args:
            proc: The process that made the call.
            key: Of the call.
            value: Told apart by its `repr`, so that must not name an address.
        """
        name, call = self._history.who, self._history.next_call()
        seen = See(
            phase=Phase.INVOKE,
            who=name,
            call=call,
            at_s=self._history.now_s(),
            process_id=proc.id,
            place=proc.idempotency_key(key),
            digest=digest(repr(value).encode()),
        )
        self._history.write([seen])
        return value

    @contextmanager
    def during(self) -> Iterator[None]:
        """Have an effect that begins before the block and ends with it."""
        step = current_step()
        run, call = step.run, self._history.next_call()
        begun = Execute(
            phase=Phase.INVOKE,
            who=self._history.who,
            call=call,
            at_s=self._history.now_s(),
            process_id=step.process_id,
            host_id=run.services.host_id,
            incarnation=run.incarnation,
            generation=run.generation,
            epoch=run.epoch,
            key=step.key,
            index=step.index,
            attempt=step.attempt,
        )
        self._history.write([begun])
        yield
        # What is cancelled or raises in the block has begun and never ended, as after a kill.
        ended = Execute(
            phase=Phase.OK, who=self._history.who, call=call, at_s=self._history.now_s()
        )
        self._history.write([ended])
