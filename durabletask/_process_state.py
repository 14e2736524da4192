"""What a process says of itself: `report` and `version`.

A thin face: it checks arguments, makes the call object and hands over.
"""

from typing import Any, TypeVar

import durabletask._report as _report
from durabletask._durable_call import Calls, DurableCall
from durabletask._errors import InvalidArgumentError
from durabletask._limits import check_name
from durabletask._model import Kind

V = TypeVar("V", int, str)


class StateCalls(Calls):
    """What a process says of itself: `report`, `version`."""

    __slots__ = ()

    def report(self, value: object, *, type: type[Any] | None = None) -> DurableCall[None]:
        """Tell how far the process is: `ProcessInfo.progress`, as `handle.info()` shows it.

        Durable when its await returns. Only the latest is kept. A resumed run does
        not report again what it comes past while it is recalling.

        Args:
            value: Any value with an exact JSON form; seen as plain JSON values.
            type: How to encode it, if it is no plain value.

        Raises:
            SerializationError: It has no exact JSON form; nothing was recorded.
        """
        run = self._run
        codec = run.services.codec
        shape = codec.shape_of(value) if type is None else codec.shape(type)
        payload = shape.encode(value, "progress")
        return DurableCall(Kind.REPORT, _report.REPORT_KEY, _report.report(run, payload))

    def version(self, key: str, current: V) -> DurableCall[V]:
        """Return the version of the code under which the process came to this call first.

        The first run records `current`; later runs return what is recorded,
        whatever their code says.

            if await proc.version("pricing", 2) == 1: …  # as it was

        A call that is added to code which processes run already cannot know
        which of them had come past it. One that has is still recalling there:

            await proc.version("pricing", 1 if proc.resuming else 2)

        Args:
            key: Names the decision within the process.
            current: Of this code.
        """
        check_name("key", key)
        if isinstance(current, bool) or not isinstance(current, int | str):
            raise InvalidArgumentError(
                f"version {key!r} is {current!r}", hint="an int or a str that names this code"
            )
        shape = self._run.services.codec.shape_of(current)
        return DurableCall(Kind.VERSION, key, _report.version(self._run, key, current, shape))
