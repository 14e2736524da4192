"""A step whose function writes into the user's own tables: its rows and its record are one.

Responsible for one attempt: the function is called with the connection, its
result encoded before anything is committed. Attempts, failures and what comes
of them are a step's (`_steps`); the transaction is the storage's.
"""

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, NamedTuple

from durabletask._codec import Shape
from durabletask._errors import InvalidArgumentError
from durabletask._model import DONE, NO_INDEX, Checkpoint, Form, Kind, Unit
from durabletask._run import Run


class Committed(NamedTuple):
    """What an attempt has come to; nothing is left to record.

    Attributes:
        value: The function's result.
        held: What is recorded instead, if an earlier attempt was committed whose
            answer was lost.
    """

    value: Any
    held: Checkpoint | None


def attempt(
    run: Run, key: str, fn: Callable[[Any], Awaitable[Any]], shape: Shape
) -> Callable[[], Awaitable[Committed]]:
    """Return the body of a step that makes one attempt; what leaves it was rolled back."""

    async def once() -> Committed:
        value: Any = None

        async def body(connection: Any) -> bytes:
            nonlocal value
            result = fn(connection)
            if not isawaitable(result):
                raise InvalidArgumentError(
                    f"the function of transaction {key!r} is not async; it was rolled back",
                    hint="async def, since it has to await what it does with the connection",
                )
            payload, value = shape.record(await result, "result")
            # User code may have swallowed the cancellation that came with an interrupt.
            run.check_interrupted()
            return payload

        place = Checkpoint(Kind.TRANSACTION, key, NO_INDEX, Form.VALUE, b"")

        async def ready() -> None:
            # After an outage too: what starts here must not start elsewhere as well.
            if not run.services.trust.holds:
                await run.hold(None, run.services.trust.regained())

        run.seq += 1
        unit = Unit(
            process_id=run.process_id,
            incarnation=run.incarnation,
            epoch=run.epoch,
            seq=run.seq,
            checkpoints=(place,),
        )
        outcome = await run.services.writer.transact(unit, body, ready)
        return Committed(value, None if outcome is DONE else run.held(outcome, place))

    return once
