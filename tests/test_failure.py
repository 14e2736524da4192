"""Errors as recorded outcomes: any can be written, each comes back the same every time."""

import asyncio
import inspect
import json
from typing import Any, Never

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabletask import _errors
from durabletask._codec import Codec
from durabletask._errors import (
    DecodeError,
    DurableTaskError,
    EventTimeoutError,
    LimitExceededError,
    ProcessError,
    ProcessFailedError,
    RegistrationError,
    SerializationError,
    StepError,
    StepInterruptedError,
    StepTimeoutError,
    UnknownProcessError,
)
from durabletask._failure import Failures
from durabletask._limits import ERROR_MESSAGE_BYTES_MAX


class TransferFailed(Exception):
    pass


class Coded(Exception):
    def __init__(self, code: int, reason: str = "?") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"[{self.code}] {self.reason}"


class Joined(Exception):
    """Its args are not what its constructor takes."""

    def __init__(self, a: str, b: str) -> None:
        super().__init__(f"{a}-{b}")


class Picky(Exception):
    allowed = True

    def __init__(self, *args: object) -> None:
        if not Picky.allowed:
            raise RuntimeError("no more")
        super().__init__(*args)


class Growing(Exception):
    """One more argument each time, and the same text."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args, 1)

    def __str__(self) -> str:
        return "growing"


class Shifty(Exception):
    """Each one is different."""

    count = 0

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        Shifty.count += 1
        self.number = Shifty.count

    def __str__(self) -> str:
        return str(self.number)


FAILURES = Failures([TransferFailed, Coded, Joined, Picky, Growing, Shifty, KeyError, OSError])


def again(error: BaseException, failures: Failures = FAILURES) -> Exception:
    """Return what every run sees, having checked that all of them see the same."""
    payload = failures.encode(error)
    first, second = failures.decode(payload), failures.decode(payload)
    assert first is not second
    third = failures.decode(failures.encode(first))
    assert type(first) is type(second) is type(third)
    assert str(first) == str(second) == str(third)
    assert b"\n" not in payload
    return first


@pytest.mark.parametrize(
    "error",
    [
        TransferFailed(),
        TransferFailed("no funds", 5),
        TransferFailed({"a": [1, (2,)]}, None),
        Coded(7, "x"),
        Coded(7),
        KeyError("k"),
        OSError("plain"),
        OSError(2, "gone"),
    ],
)
def test_registered_class_comes_back_as_itself(error: Exception) -> None:
    """Rule 3, S4.03, S4.06: `except TransferFailed` works on the first run and after a restart."""
    seen = again(error)
    if isinstance(error, OSError) and type(error) is not OSError:
        assert type(seen) is StepError  # OSError(2, …) makes a FileNotFoundError: not registered
        return
    assert type(seen) is type(error)
    assert seen.args == error.args
    assert vars(seen) == vars(error)
    cause = seen.__cause__
    assert type(cause) is StepError
    assert cause.type == type(error).__name__
    assert cause.message == str(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        Joined("a", "b"),
        TransferFailed(object()),
        TransferFailed(float("nan")),
        TransferFailed("\ud800"),
        TransferFailed("x" * 3_000_000),
        OSError(2, "gone", "file"),
        Shifty(),
        Growing(),
        type("TransferFailed", (Exception,), {})("impostor"),
        type("Sub", (TransferFailed,), {})("subclass"),
        ZeroDivisionError(),
    ],
)
def test_everything_else_becomes_a_step_error(error: Exception) -> None:
    """Rule 3, F111: what is not registered, or would not be rebuilt equal, is a StepError."""
    seen = again(error)
    assert type(seen) is StepError
    assert seen.type == type(error).__name__
    assert seen.__cause__ is None


def test_message_and_type_are_kept() -> None:
    """S4.06: a stored failure is raised again with equal type and message."""
    seen = again(ValueError("the amount is 5 €"))
    assert isinstance(seen, StepError)
    assert (seen.type, seen.message) == ("ValueError", "the amount is 5 €")
    assert str(seen) == "ValueError: the amount is 5 €"


OWN_CLASSES = [
    cls
    for cls in vars(_errors).values()
    if isinstance(cls, type) and issubclass(cls, DurableTaskError)
]


def make(cls: type[DurableTaskError], hint: str | None) -> DurableTaskError:
    values = {"process_id": "order/7", "type": "Oops", "message": "it\nbroke", "hint": hint}
    return cls(**{name: values[name] for name in inspect.signature(cls).parameters})  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", OWN_CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("hint", [None, "do that"])
def test_ours_come_back_as_themselves(cls: type[DurableTaskError], hint: str | None) -> None:
    """Rule 2: each error of this library is equal in type, text and fields on every run."""
    error = make(cls, hint)
    seen = again(error)
    assert type(seen) is cls
    assert str(seen) == str(error)
    assert vars(seen) == vars(error)


def test_failed_child_keeps_its_cause() -> None:
    """S3.04: a child's failure reaches the parent with the error that caused it."""
    error = ProcessFailedError("child", "TransferFailed", "no funds")
    error.__cause__ = TransferFailed("no funds")
    seen = again(error)
    assert type(seen.__cause__) is TransferFailed
    inner = ProcessFailedError("inner", "X", "x")
    inner.__cause__ = error
    deepest = again(inner).__cause__
    assert deepest is not None
    assert type(deepest.__cause__) is TransferFailed


def test_causes_that_go_in_circles_end() -> None:
    """F111: an error that is its own cause, or a long chain of them, is still recorded."""
    error = ProcessFailedError("a", "X", "x")
    error.__cause__ = error
    assert type(again(error)) is ProcessFailedError


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Exit(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class NotText(Exception):
    def __str__(self) -> Any:
        return 5  # noqa: PLE0307  the point


class Deep(Exception):
    def __str__(self) -> str:
        return str(self)


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Nameless(Exception, metaclass=Meta):
    pass


class StrangeGroup(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Never:
        raise RuntimeError("none of your business")


class FancyText(str):
    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        raise RuntimeError("fancy")

    def __getitem__(self, _: object) -> Never:
        raise RuntimeError("fancy")


class Fancy(Exception):
    def __str__(self) -> str:
        return FancyText("fancy")


STRANGE: list[BaseException] = [
    NoText(),
    Exit(),
    NotText(),
    Deep(),
    Nameless(),
    Fancy(),
    StrangeGroup("g", [ValueError()]),
    ValueError("\ud800 \udfff"),
    ValueError("\x00\n\x1b[31m"),
    ValueError("x" * 10_000_000),
    ValueError("€" * 100_000),
    ValueError(10**5000),
    type("N" * 10_000, (Exception,), {})("x"),
    type("Né\n", (Exception,), {})("x"),
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    SystemExit(3),
    GeneratorExit(),
    BaseException("b"),
    StepError("", ""),
    StepError("T" * 10_000, "m" * 100_000),
    StepError(1, None),  # type: ignore[arg-type]
    SerializationError("m" * 100_000, hint="h" * 100_000),
    UnknownProcessError("p" * 100_000, "\ud800", hint="\ud800"),
    DurableTaskError("m", hint="m"),
]


@pytest.mark.parametrize("error", STRANGE, ids=lambda error: f"{type.__repr__(type(error))[:40]}")
def test_any_exception_can_be_recorded(error: BaseException) -> None:
    """F111: whatever an exception does when it is looked at, it is recorded, small and valid."""
    failures = Failures([NoText, Exit, NotText, Deep, Fancy])
    payload = failures.encode(error)
    assert len(payload) < 8 * ERROR_MESSAGE_BYTES_MAX
    assert set(json.loads(payload)) >= {"type", "message"}
    again(error, failures)


def test_lone_surrogates_stay_readable() -> None:
    """F111, F123: a message that is no valid Unicode is kept in a form that is."""
    assert str(again(ValueError("a\ud800"))) == "ValueError: a\\ud800"


def test_cycles_in_arguments() -> None:
    """F111: an exception that holds itself is recorded."""
    error = TransferFailed("x")
    error.args = (error, [error.args])
    loop: list[Any] = []
    loop.append(loop)
    assert type(again(error)) is StepError
    assert type(again(TransferFailed(loop))) is StepError


def test_message_is_cut_at_a_character() -> None:
    """F111: a message of the limit is kept whole; a longer one is cut between characters."""
    fits = again(ValueError("x" * ERROR_MESSAGE_BYTES_MAX))
    assert isinstance(fits, StepError)
    assert len(fits.message) == ERROR_MESSAGE_BYTES_MAX
    for character in "x", "é", "€", "😀":
        cut = again(ValueError(character * (ERROR_MESSAGE_BYTES_MAX + 1)))
        assert isinstance(cut, StepError)
        assert ERROR_MESSAGE_BYTES_MAX - 8 < len(cut.message.encode()) <= ERROR_MESSAGE_BYTES_MAX
        assert cut.message.strip(character) == "…"


def test_group_names_its_leaves() -> None:
    """F111: the message of an exception group says what was in it, however deep."""
    group = ExceptionGroup("two", [ValueError("a"), ExceptionGroup("in", [KeyError("b")])])
    assert str(again(group)) == (
        "ExceptionGroup: two (2 sub-exceptions): ValueError: a; KeyError: 'b'"
    )
    deep: Exception = ValueError("leaf")
    for _ in range(5000):
        deep = ExceptionGroup("g", [deep])
    assert "ValueError: leaf" in str(again(deep))
    many = again(ExceptionGroup("g", [ValueError(n) for n in range(1000)]))
    assert str(many).endswith("ValueError: 19; …")


def test_class_no_longer_registered() -> None:
    """Rule 4: forgetting to register a class is a mistake in code, not another kind of error."""
    payload = FAILURES.encode(TransferFailed("x"))
    with pytest.raises(DecodeError, match=r"TransferFailed.*not given") as caught:
        Failures().decode(payload)
    assert caught.value.hint == "register it again: ProcessHost(errors=[TransferFailed])"


def test_view_needs_no_classes() -> None:
    """F125: whoever looks at a failure without its class sees type and message."""
    payload = FAILURES.encode(TransferFailed("x"))
    seen = Failures().view(payload)
    assert isinstance(seen, StepError)
    assert (seen.type, seen.message) == ("TransferFailed", "x")
    assert type(FAILURES.view(payload)) is TransferFailed
    for damaged in (b"1", b"{", b'{"type":1,"message":"m","args":{"$tuple":[]}}'):
        with pytest.raises(DecodeError):
            Failures().view(damaged)


def test_class_registered_later() -> None:
    """Rule 3: what was recorded as a StepError stays one, since that is what was seen."""
    payload = Failures().encode(TransferFailed("x"))
    assert type(FAILURES.decode(payload)) is StepError


def test_class_that_no_longer_rebuilds() -> None:
    """Rule 4: a registered class whose constructor changed is an error in code."""
    payload = FAILURES.encode(Picky("x"))
    Picky.allowed = False
    try:
        with pytest.raises(DecodeError, match=r"Picky cannot be rebuilt.*no more"):
            FAILURES.decode(payload)
    finally:
        Picky.allowed = True


def test_registration() -> None:
    """Rule 3: classes that could not be told apart or are no failures are refused at once."""
    with pytest.raises(RegistrationError, match="two classes named 'TransferFailed'"):
        Failures([TransferFailed, type("TransferFailed", (Exception,), {})])
    Failures([TransferFailed, TransferFailed])
    for wrong in (KeyboardInterrupt, int, "TransferFailed", ValueError("x")):
        with pytest.raises(RegistrationError, match="takes exception classes"):
            Failures([wrong])  # type: ignore[list-item]


def test_arguments_of_registered_classes_of_data() -> None:
    """Rule 3: arguments follow the rules for values, with the host's own types."""
    import dataclasses

    @dataclasses.dataclass
    class Reason:
        text: str

    error = TransferFailed(Reason("x"))
    assert type(again(error, Failures([TransferFailed]))) is StepError
    seen = again(error, Failures([TransferFailed], Codec(types=[Reason])))
    assert seen.args == (Reason("x"),)


@pytest.mark.parametrize(
    "record",
    [
        None,
        1,
        "x",
        [],
        {},
        {"type": "X"},
        {"type": 1, "message": "m"},
        {"type": "X", "message": None},
        {"type": "Popen", "message": "m", "args": {"$tuple": ["true"]}},
        {"type": "TransferFailed", "message": "m", "args": 1},
        {"type": "TransferFailed", "message": "m", "args": {"$tuple": 1}},
        {"type": "Coded", "message": "m", "args": {"$tuple": []}},
        {"type": "StepError", "message": "m", "own": {}},
        {"type": "StepError", "message": "m", "own": 1},
        {"type": "StepError", "message": "m", "own": {"type": 1, "message": "m"}},
        {"type": "StepError", "message": "m", "own": {"type": "T", "message": "m", "x": "y"}},
        {"type": "ValueError", "message": "m", "own": {"message": "m"}},
        {"type": "DurableTaskError", "message": "m", "own": {"self": "m", "message": "m"}},
        {"type": "StepError", "message": "m", "own": {"type": "T", "message": "m"}, "cause": 1},
    ],
)
def test_no_recorded_error(record: object) -> None:
    """F135: a damaged or hostile record is a DecodeError; no name in it is resolved."""
    with pytest.raises(DecodeError):
        FAILURES.decode(orjson.dumps(record))


def test_deep_causes_in_a_hostile_record() -> None:
    """F135: a record nested as deep as the reader allows is a DecodeError."""
    record: Any = {"type": "X", "message": "x"}
    for _ in range(200):
        record = {
            "type": "StepError",
            "message": "m",
            "own": {"type": "T", "message": "m"},
            "cause": record,
        }
    with pytest.raises(DecodeError):
        FAILURES.decode(json.dumps(record).encode())


def test_room_for_later_releases() -> None:
    """F125: members that a later release adds to the record are no hindrance."""
    record = orjson.loads(FAILURES.encode(TransferFailed("x"))) | {"traceback": ["a", "b"]}
    assert type(FAILURES.decode(orjson.dumps(record))) is TransferFailed


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([ValueError, TransferFailed, Coded, KeyError, StepTimeoutError,
                     StepInterruptedError, EventTimeoutError, LimitExceededError, ProcessError]),
    st.lists(st.text() | st.integers() | st.floats() | st.binary() | st.none(), max_size=3),
)  # fmt: skip
def test_first_run_and_later_runs_agree(cls: type[Exception], args: list[Any]) -> None:
    """F111: for any error, what the first run sees is what later runs see."""
    try:
        error = cls(*args)
    except Exception:  # these arguments make no such error
        return
    again(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.text(max_size=5) | st.integers(0, 5),
    lambda inner: st.dictionaries(
        st.sampled_from(["type", "message", "args", "own", "cause", "process_id", "$tuple"]),
        inner | st.sampled_from(["TransferFailed", "StepError", "Coded", "ProcessFailedError"]),
        max_size=5,
    ) | st.lists(inner, max_size=2),
    max_leaves=10,
).map(orjson.dumps))  # fmt: skip
def test_any_record_is_an_error_or_a_decode_error(payload: bytes) -> None:
    """F135: decoding never raises anything but DecodeError."""
    try:
        error = FAILURES.decode(payload)
    except DecodeError:
        return
    assert isinstance(error, Exception)
