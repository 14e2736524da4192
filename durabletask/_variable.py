"""Durable variables: the one value of a process that may change."""

from typing import Any, Generic, TypeVar, cast

from durabletask._codec import Shape
from durabletask._durable_call import DurableCall
from durabletask._model import NO_INDEX, Checkpoint, Form, Kind
from durabletask._run import Run

T = TypeVar("T")


class Var(Generic[T]):
    """A durable variable: the one value of a process that may change.

    A resumed run starts from the last value set.
    """

    __slots__ = ("_key", "_payload", "_run", "_shape")

    def __init__(self, run: Run, key: str, shape: Shape, payload: bytes) -> None:
        self._run = run
        self._key = key
        self._shape = shape
        self._payload = payload

    @property
    def value(self) -> T:
        """The value, decoded afresh: changing it in place changes nothing stored."""
        return cast("T", self._shape.decode(self._payload))

    def set(self, value: T) -> DurableCall[None]:
        """Set the value; durable when its await returns.

        Raises:
            SerializationError: It has no exact JSON form; the old value stays.
        """
        payload = self._shape.encode(value)
        return DurableCall(Kind.VAR, self._key, self._set(payload))

    async def _set(self, payload: bytes) -> None:
        run = self._run
        run.check_caller(self._key)
        if run.collecting:
            self._payload = payload  # recorded already, or never: this run changes nothing
            return
        if run.gated:
            await run.stay_open(self._key)
        await run.record(
            Checkpoint(Kind.VAR, self._key, NO_INDEX, Form.VALUE, payload, replaces=True)
        )
        self._payload = payload


async def variable(run: Run, key: str, shape: Shape, default: Any) -> "Var[Any]":
    """Return the variable of a key, with what is recorded or else with its default."""
    if run.gated:
        await run.pass_gate(Kind.VAR, key)
    held = run.ask(Kind.VAR, key)
    if held is None:
        payload = shape.encode(default)
        held = await run.record(Checkpoint(Kind.VAR, key, NO_INDEX, Form.VALUE, payload))
    run.unseal(held, shape)  # so that a value which no longer fits is met here
    return Var(run, key, shape, held.payload)
