"""Children and messages: what a process does to other processes, as one record with its key.

A child is created, an event delivered, in the very unit that records the call,
so neither can be without the other. The end of a child is an event in this
process's mailbox, put there by the storage.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec

import durabletask._waits as _waits
from durabletask._branch import Won
from durabletask._codec import Shape
from durabletask._culprits import mark
from durabletask._errors import (
    KeyConflictError,
    ProcessFailedError,
    ProcessTerminatedError,
    StepError,
    StorageError,
)
from durabletask._limits import NAME_BYTES_MAX
from durabletask._model import (
    CHILD_ENDED,
    NO_INDEX,
    Checkpoint,
    Event,
    Form,
    Kind,
    NewEvent,
    NewProcess,
    Parent,
    Status,
)
from durabletask._notes import RESULT, CallNote, WaitNote, encode, kind_of
from durabletask._refused import why_not
from durabletask._run import Run

_DIGEST_CHARS = 32


def derived_id(run: Run, key: str) -> str:
    """Return the id of the child of a key, or of the event that a key sends.

    The same in every run of this generation, and no other's. Hashed at its end where too long.
    """
    name = f"{run.process_id}/{run.incarnation}.{run.generation}/{key}"
    encoded = name.encode()
    if len(encoded) <= NAME_BYTES_MAX:
        return name
    digest = sha256(encoded).hexdigest()[:_DIGEST_CHARS]
    room = NAME_BYTES_MAX - len(digest) - 1
    return f"{encoded[:room].decode(errors='ignore')}~{digest}"


@dataclass(frozen=True, slots=True)
class Birth:
    """A child as its spawn describes it.

    Attributes:
        shape: Of what its function returns.
    """

    process_id: str
    name: str
    input: bytes
    digest: str
    shape: Shape
    tags: dict[str, str]
    start_at: datetime | None
    deadline_at: datetime | None
    context: bytes | None

    def record(self, run: Run, key: str) -> NewProcess:
        """Return what the storage creates."""
        return NewProcess(
            process_id=self.process_id,
            name=self.name,
            input=self.input,
            input_digest=self.digest,
            creation_id=derived_id(run, key),
            start_at=self.start_at,
            deadline_at=self.deadline_at,
            tags=self.tags,
            context=self.context,
            parent=Parent(run.process_id, run.incarnation, run.generation, key),
        )


async def spawn(run: Run, key: str, birth: Birth) -> str:
    """Create a child, or recall that it was; return its id."""
    if run.gated:
        await run.pass_gate(Kind.CHILD, key)
    held = run.ask(Kind.CHILD, key)
    if held is not None:
        await run.recall(held)
    else:
        payload = msgspec.json.encode(birth.process_id)
        checkpoint = Checkpoint(Kind.CHILD, key, NO_INDEX, Form.VALUE, payload)
        held = await _reach(run, checkpoint, spawns=(birth.record(run, key),))
    if held.form is not Form.VALUE:
        run.unseal(held, run.services.any_shape)
    child_id: str = _waits.decode_note(run, held, str)
    return child_id


async def call(run: Run, key: str, birth: Birth) -> Any:
    """Create a child and wait for its result; see `Process.call`."""
    if run.gated:
        await run.pass_gate(Kind.CALL, key)
    held = run.ask(Kind.CALL, key)
    if held is None:
        if _noted(run, key, NO_INDEX) is None:
            refused = await _begin(run, key, birth)
            if refused is not None:
                return run.unseal(refused, birth.shape)
            if run.outside is not None:
                await run.meet_asked(Kind.CALL, key)
        held = await _await_end(run, key, NO_INDEX, birth.process_id, noted=True)
    else:
        await _recall_end(run, held)
    return outcome(run, held, birth.shape)


async def result(run: Run, key: str, child_id: str, shape: Shape) -> Any:
    """Wait for the result of a child that `spawn` has created."""
    if run.gated:
        await run.pass_gate(Kind.CALL, key, RESULT)
    run.check_caller(key)
    if run.journal.is_used_up(key, RESULT):
        raise run.quarantine(
            KeyConflictError(
                f"the result of child {key!r} was taken before, and it has only one",
                hint="keep what came of it; of a race that it won: result.of(branch)",
            )
        )
    held = run.ask(Kind.CALL, key, RESULT)
    if held is None:
        noted = _noted(run, key, RESULT)
        held = await _await_end(run, key, RESULT, child_id, noted=noted is not None)
    else:
        await _recall_end(run, held)
    return outcome(run, held, shape)


async def send(run: Run, key: str, event: NewEvent) -> None:
    """Put an event into another process's mailbox; see `Process.raise_event`."""
    if run.gated:
        await run.pass_gate(Kind.SEND, key)
    held = run.ask(Kind.SEND, key)
    if held is not None:
        await run.recall(held)
    else:
        payload = msgspec.json.encode(event.process_id)
        checkpoint = Checkpoint(Kind.SEND, key, NO_INDEX, Form.VALUE, payload)
        held = await _reach(run, checkpoint, sends=(event,))
    if held.form is not Form.VALUE:
        run.unseal(held, run.services.any_shape)


def mailbox_name(run: Run, key: str) -> str:
    """Return the name under which the end of a child waits in the mailbox."""
    return f"{CHILD_ENDED}{run.generation}:{key}"


def end_note(event: Event, child_id: str) -> bytes:
    """Return what a call records of a child's end."""
    status = Status(event.name.removeprefix(CHILD_ENDED))
    return encode(CallNote(status, child_id, msgspec.Raw(event.payload), event.position))


def outcome(run: Run, held: Checkpoint, shape: Shape) -> Any:
    """Return what a child returned, or raise how it ended."""
    if held.form is not Form.VALUE:
        return run.unseal(held, shape)
    note = _waits.decode_note(run, held, CallNote)
    if note.status is Status.COMPLETED:
        inner = Checkpoint(held.kind, held.key, held.index, Form.VALUE, bytes(note.payload))
        return run.unseal(inner, shape)
    if note.status is Status.TERMINATED:
        raise mark(
            ProcessTerminatedError(note.child, f"process {note.child!r} was terminated"), held
        )
    error = run.services.failures.view(bytes(note.payload))
    step = error if isinstance(error, StepError) else None
    failed = ProcessFailedError(
        note.child,
        step.type if step else type(error).__name__,
        step.message if step else str(error),
    )
    raise mark(failed, held) from error


@dataclass(frozen=True, slots=True)
class ChildBranch:
    """The result of a spawned child, as a branch of a race."""

    run: Run
    key: str
    child_id: str
    shape: Shape

    @property
    def event_name(self) -> str:
        """Its end is an event of its own."""
        return mailbox_name(self.run, self.key)

    @property
    def refusal(self) -> None:
        """Every child that exists can be a branch."""
        return

    def due_at(self) -> None:
        """Nothing but its end ends it."""
        return

    def seal(self, key: str, won: Won) -> bytes:
        """Return what awaiting the result records."""
        assert won.event is not None
        return end_note(won.event, self.child_id)

    def unseal(self, key: str, sealed: bytes) -> Any:
        """Return what the child returned, or raise how it ended."""
        held = Checkpoint(Kind.CALL, self.key, RESULT, Form.VALUE, sealed)
        return outcome(self.run, held, self.shape)


# --- inside ---------------------------------------------------------------------------------


def _noted(run: Run, key: str, index: int) -> WaitNote | None:
    noted = _waits.recorded_wait(run, key, index)
    if noted is not None and kind_of(noted) is not Kind.CALL:
        raise _waits.changed(run, key, "a child", _waits.described(noted))
    return noted


async def _begin(run: Run, key: str, birth: Birth) -> Checkpoint | None:
    """Create a child and record that it is waited for; what is held if it cannot be created."""
    note = encode(WaitNote(kind=Kind.CALL, child=birth.process_id))
    checkpoint = Checkpoint(Kind.WAIT, key, NO_INDEX, Form.VALUE, note)
    task = asyncio.current_task()
    requests = 0 if task is None else task.cancelling()
    held = await _reach(run, checkpoint, Kind.CALL, spawns=(birth.record(run, key),))
    cancelled = task is not None and task.cancelling() > requests
    if held.kind is Kind.CALL:
        if cancelled:
            await run.overtake(key, NO_INDEX)
        return held
    if cancelled:
        # What user code cancelled while the child was being created is the wait for it.
        await run.record_cancelled(Kind.CALL, key, NO_INDEX)
        raise asyncio.CancelledError
    return None


async def _await_end(run: Run, key: str, index: int, child_id: str, *, noted: bool) -> Checkpoint:
    """Wait for a child's end and record it.

    Args:
        noted: Whether it is recorded already that the wait has begun.
    """
    name = mailbox_name(run, key)
    event = run.mailbox.take(name)
    if event is None:
        note = None
        if not noted:
            note = _waits.wait_note(key, index, WaitNote(kind=Kind.CALL, child=child_id))
        waiter = _waits.in_line(run, (name,), None)
        run.wait_begins(None, waiter, note)
        try:
            event = await waiter
        except asyncio.CancelledError:
            run.mailbox.leave(name, waiter)
            run.wait_broken(waiter)
            await run.record_cancelled(Kind.CALL, key, index)
            raise
        run.wait_ended(waiter)
    assert event is not None  # nothing is due
    checkpoint = Checkpoint(Kind.CALL, key, index, Form.VALUE, end_note(event, child_id))
    return await run.record(checkpoint, consumes=(event.position,))


async def _recall_end(run: Run, held: Checkpoint) -> None:
    if held.form is Form.VALUE:
        note = _waits.decode_note(run, held, CallNote)
        if note.status is not Status.COMPLETED and await run.take_turn(held):
            run.journal.take(Kind.OVERTAKEN, held.key, held.index)
            return
    await run.recall(held)


async def _reach(
    run: Run, checkpoint: Checkpoint, kind: Kind | None = None, **more: Any
) -> Checkpoint:
    """Record a checkpoint together with what it does to others, or else why that cannot be.

    Args:
        kind: Of the checkpoint that says why, if not that of the other.
    """
    run.check_interrupted()
    answer = run.submit((checkpoint,), mailbox_max=run.services.limits.mailbox_max, **more)
    try:
        answered = await answer
    except (asyncio.CancelledError, StorageError):
        # A wait that has begun is no outcome that could overtake whatever cancelled it.
        begins = checkpoint.kind is Kind.WAIT
        answered = await (run.follow(answer) if begins else run.outlast(answer, checkpoint))
    if answered.culprit is None:
        return run.held(answered, checkpoint)
    assert answered.refused is not None
    error = why_not(answered.refused, answered.culprit, run.services.limits.mailbox_max)
    payload = run.services.failures.encode(error)
    return await run.record(
        Checkpoint(kind or checkpoint.kind, checkpoint.key, checkpoint.index, Form.ERROR, payload)
    )
