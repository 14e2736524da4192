"""What a process says of itself: how far it is, and under which version of its code it began."""

from typing import Any

import msgspec

from durabletask._codec import Shape
from durabletask._model import NO_INDEX, Checkpoint, Form, Kind
from durabletask._notes import ReportNote, encode
from durabletask._run import Run

REPORT_KEY = "progress"
"""There is one progress; under the engine's own kind, so that the key is free for durable calls."""


async def report(run: Run, payload: bytes) -> None:
    """Record the progress, unless an earlier run has reported more often already.

    Only while calls are being recalled: then what is recorded is what was
    said last. Where the code reports less often than it did, or a recorded
    call is never asked for, one of both tells.
    """
    run.check_caller(REPORT_KEY)
    if run.collecting:
        return  # reported already, or never: this run changes nothing
    if run.gated:
        await run.stay_open(REPORT_KEY)
    run.reports += 1
    held = run.journal.find(Kind.REPORT, REPORT_KEY)
    if held is not None:
        earlier = msgspec.json.decode(held.payload, type=ReportNote).count
        if run.journal.unasked and run.reports <= earlier:
            return
        # From here on what is reported is new, and nothing need be looked up any more.
        run.journal.take(Kind.REPORT, REPORT_KEY)
    note = ReportNote(run.reports, msgspec.Raw(payload))
    await run.note(
        Checkpoint(Kind.REPORT, REPORT_KEY, NO_INDEX, Form.VALUE, encode(note), replaces=True)
    )


async def version(run: Run, key: str, current: int | str, shape: Shape) -> Any:
    """Record `current`, or return what is recorded; see `Process.version`."""
    if run.gated:
        await run.pass_gate(Kind.VERSION, key)
    held = run.ask(Kind.VERSION, key)
    if held is None:
        payload = shape.encode(current)
        held = await run.record(Checkpoint(Kind.VERSION, key, NO_INDEX, Form.VALUE, payload))
    else:
        await run.recall(held)
    return run.unseal(held, shape)
