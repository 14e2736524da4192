"""Exceptions as recorded outcomes.

Responsible for writing down any exception whatsoever, and for raising the same
again on every run: ours as themselves, registered classes as themselves, all
others as `StepError`. Refuses to resolve a class by a name found in data, and
to fail: an error must never be lost because it cannot be described.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from durabletask._codec import Codec
from durabletask._codec_any import same
from durabletask._codec_json import excerpt, loads
from durabletask._errors import (
    DecodeError,
    DurableTaskError,
    ProcessCancelledError,
    ProcessError,
    ProcessFailedError,
    RegistrationError,
    StepError,
)
from durabletask._limits import ERROR_MESSAGE_BYTES_MAX

_TYPE_BYTES_MAX = 200
_LEAVES_MAX = 20
"""Leaves of an exception group that its message names."""

_LEAF_CHARS_MAX = 1000

_CAUSES_MAX = 8
"""A failed child of a failed child …: so many levels are kept."""


def _tree(cls: type[DurableTaskError]) -> Iterator[type[DurableTaskError]]:
    yield cls
    for derived in cls.__subclasses__():
        yield from _tree(derived)


_OWN: dict[str, type[DurableTaskError]] = {
    cls.__name__: cls
    for cls in _tree(DurableTaskError)
    if cls.__module__ == DurableTaskError.__module__  # not what users derive
}


class Failures:
    """Writes and reads the errors of one host or client.

    A record is a JSON object with `type` and `message`, `args` for a
    registered class, `own` for one of ours; unknown members are ignored, so
    that later releases can add some.

    Args:
        errors: Classes that come back as themselves, as `ProcessHost(errors=…)`.
        codec: For the arguments of those.

    Raises:
        RegistrationError: Two classes of one name, or one that is no Exception.
    """

    def __init__(
        self,
        errors: Iterable[type[Exception]] = (),
        codec: Codec = Codec(),  # noqa: B008  immutable but for its caches
    ) -> None:
        self._args = codec.shape(tuple)
        self._classes: dict[str, type[Exception]] = {}
        for cls in errors:
            self._register(cls)

    def encode(self, error: BaseException) -> bytes:
        """Return the record of any exception; never raises."""
        try:
            return orjson.dumps(self._record(error, 0))
        except BaseException:  # noqa: BLE001  whatever a strange exception does when looked at
            strange = {"type": _type_name(error), "message": "(this error cannot be described)"}
            return orjson.dumps(strange)

    def decode(self, payload: bytes) -> Exception:
        """Return a fresh exception, equal on every call in type and text.

        A registered class comes chained from the `StepError` that tells what
        was recorded.

        Raises:
            DecodeError: It is no recorded error, or one of a class that is
                not registered any more or cannot be rebuilt any more.
        """
        return self._error(loads(payload), payload, 0)

    def view(self, payload: bytes) -> Exception:
        """Return the exception for somebody who looks on, without the code that raised it.

        What `decode` cannot make because a class is missing is a `StepError`
        here. A process never sees it: for it that would be another error.

        Raises:
            DecodeError: It is no recorded error.
        """
        record = loads(payload)
        try:
            return self._error(record, payload, 0)
        except DecodeError:
            if not isinstance(record, dict) or "args" not in record:
                raise
            return self._error({**record, "args": None}, payload, 0)

    def _register(self, cls: type[Exception]) -> None:
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            raise RegistrationError(
                f"errors= takes exception classes, not {cls!r}",
                hint="derive it from Exception; a BaseException is no failure of a step",
            )
        if self._classes.setdefault(cls.__name__, cls) is not cls:
            raise RegistrationError(
                f"errors= has two classes named {cls.__name__!r}: "
                f"{self._classes[cls.__name__].__module__} and {cls.__module__}",
                hint="rename one; records name classes by their bare name",
            )

    def _record(self, error: BaseException, level: int) -> dict[str, Any]:
        cls = type(error)
        record: dict[str, Any] = {"type": _type_name(error), "message": _message(error)}
        if _OWN.get(cls.__name__) is cls:
            assert isinstance(error, DurableTaskError)
            record |= _own_fields(error)
            cause = error.__cause__
            if isinstance(error, ProcessError) and cause is not None and level < _CAUSES_MAX:
                record["cause"] = self._record(cause, level + 1)
        elif self._classes.get(cls.__name__) is cls:
            args = self._rebuildable_args(error)
            if args is not None:
                record["args"] = args
        return record

    def _rebuildable_args(self, error: BaseException) -> Any:
        """Return the wire form of `error.args` if they rebuild an equal error, else None."""
        try:
            payload, args = self._args.record(error.args, "args")
            again: BaseException = type(error)(*args)
            if type(again) is not type(error) or not same(again.args, error.args):
                return None
            # Not _text(): one that cannot be shown does not come back as itself.
            return orjson.loads(payload) if str(again) == str(error) else None
        except BaseException:  # noqa: BLE001  a constructor of the user's may raise anything
            return None

    def _error(self, record: Any, payload: bytes, level: int) -> Exception:
        if not isinstance(record, dict) or level > _CAUSES_MAX:
            raise _no_error(payload)
        kind, message = record.get("type"), record.get("message")
        if not isinstance(kind, str) or not isinstance(message, str):
            raise _no_error(payload)
        if record.get("args") is not None:
            return self._registered(kind, message, record["args"])
        if "own" not in record:
            return StepError(kind, message)
        error = _own_error(kind, record["own"], payload)
        if "cause" in record:
            error.__cause__ = self._error(record["cause"], payload, level + 1)
        return error

    def _registered(self, kind: str, message: str, wire: Any) -> Exception:
        cls = self._classes.get(kind)
        if cls is None:
            raise DecodeError(
                f"the recorded error is a {kind!a}, a class that this code was not given",
                hint=f"register it again: ProcessHost(errors=[{kind}])",
            )
        args = self._args.unpack(wire, "args")
        try:
            error = cls(*args)
        except Exception as problem:
            raise DecodeError(
                f"the recorded {kind} cannot be rebuilt from its arguments: {_text(problem):.200}",
                hint=f"let {kind}(*args) accept what it accepted when it was recorded",
            ) from problem
        if type(error) is not cls:
            raise DecodeError(f"{kind}(*args) makes a {type(error).__name__}")
        error.__cause__ = StepError(kind, message)
        return error


def was_cancelled(error: BaseException) -> bool:
    """Return whether an error says that the process was cancelled, and nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(ProcessCancelledError)[1] is None
    return isinstance(error, ProcessCancelledError)


def _own_fields(error: DurableTaskError) -> dict[str, Any]:
    """Return what the constructor of one of our classes needs, under `own`."""
    own: dict[str, Any] = {}
    if isinstance(error, ProcessError):
        own["process_id"] = _cut(error.process_id)
    if isinstance(error, StepError | ProcessFailedError):
        own["type"] = _cut(error.type, _TYPE_BYTES_MAX)
        own["message"] = _cut(error.message)
    elif error.hint is None:
        own["message"] = _cut(_text(error))
    else:
        own["message"] = _cut(_text(error).removesuffix(f"\nhint: {error.hint}"))
        own["hint"] = _cut(error.hint)
    return {"own": own}


def _own_error(kind: str, own: Any, payload: bytes) -> Exception:
    cls: Callable[..., Exception] | None = _OWN.get(kind)
    if cls is None or not isinstance(own, dict) or not all(type(v) is str for v in own.values()):
        raise _no_error(payload)
    try:
        return cls(**own)
    except TypeError:
        raise _no_error(payload) from None


def _no_error(payload: bytes) -> DecodeError:
    return DecodeError(f"the payload is no recorded error: {excerpt(payload)}")


def _type_name(error: BaseException) -> str:
    # Not error.__class__, nor cls.__name__: both can be faked by a strange class.
    return _cut(type.__dict__["__name__"].__get__(type(error)), _TYPE_BYTES_MAX)


def _message(error: BaseException) -> str:
    text = _text(error)
    if not isinstance(error, BaseExceptionGroup):
        return _cut(text)
    leaves, more = _leaves(error)
    named = [f"{_type_name(leaf)}: {_text(leaf)[:_LEAF_CHARS_MAX]}" for leaf in leaves]
    return _cut(f"{text}: {'; '.join(named)}{'; …' if more else ''}")


def _leaves(group: BaseExceptionGroup[BaseException]) -> tuple[list[BaseException], bool]:
    """Return the first leaves of a group, however deep it is, and whether there are more."""
    leaves: list[BaseException] = []
    rest: list[BaseException] = [group]
    while rest:
        error = rest.pop()
        if isinstance(error, BaseExceptionGroup):
            rest.extend(reversed(error.exceptions))
        elif len(leaves) == _LEAVES_MAX:
            return leaves, True
        else:
            leaves.append(error)
    return leaves, False


def _text(error: BaseException) -> str:
    """Return str(error), or that there is none."""
    try:
        # A __str__ may return a subclass of str with surprises of its own.
        return str.__str__(str(error))
    except BaseException as problem:  # noqa: BLE001  __str__ is user code
        return f"(its __str__ raised {_type_name(problem)})"


def _cut(text: str, bytes_max: int = ERROR_MESSAGE_BYTES_MAX) -> str:
    """Return `text` as valid Unicode of at most `bytes_max` bytes."""
    encoded = text[: bytes_max + 1].encode("utf-8", "backslashreplace")
    if len(encoded) <= bytes_max:
        return encoded.decode()
    return encoded[: bytes_max - 3].decode("utf-8", "ignore") + "…"
