"""Conformance: values come back byte for byte, and the rows that every predecessor tested."""

from uuid import UUID

from durabletask.storage import (
    CLAIMABLE,
    NO_INDEX,
    Checkpoint,
    Ending,
    Form,
    Kind,
    Leave,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.corpus import BIG_PAYLOAD, PAYLOADS
from durabletask.testing._conformance.world import (
    FINISH,
    QUARANTINE,
    bare,
    event,
    latest,
    step,
    unit,
)


class ValueConformance(ConformanceBase):
    """Payloads, and what S4.15 names."""

    async def test_every_json_text_comes_back_byte_for_byte(self) -> None:
        """F122 F123: escapes, spaces, order of keys, big numbers: a storage never looks inside."""
        async with self.world() as w:
            lease = await w.host()
            for number, payload in enumerate(PAYLOADS):
                process_id = f"p{number}"
                row = await w.held(process_id, lease, input=payload, context=payload)
                await w.sent(event(process_id, "e1", payload))
                await w.done(
                    lease,
                    unit(row, 1, step("a", payload), latest("v", payload)),
                    unit(row, 2, ending=Ending(Status.FAILED, Form.ERROR, payload)),
                )
                snapshot = await w.history(process_id)
                assert snapshot.row.input == payload
                assert snapshot.row.context == payload
                assert [each.payload for each in snapshot.checkpoints] == [payload, payload]
                assert [each.payload for each in snapshot.events] == [payload]
                assert snapshot.row.ending is not None
                assert snapshot.row.ending.payload == payload

    async def test_a_value_of_two_mebibytes_comes_back(self) -> None:
        """F124 rule 14: as input, checkpoint, event and result; a claim hands them out whole."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease, input=BIG_PAYLOAD)
            await w.sent(event("p", "e1", BIG_PAYLOAD))
            await w.done(lease, unit(row, 1, step("a", BIG_PAYLOAD), step("b")))
            lease = await w.after(lease, "host-2")
            claimed = (await w.take(lease))["p"]
            assert claimed.row.input == BIG_PAYLOAD
            assert claimed.checkpoints[0].payload == BIG_PAYLOAD
            assert claimed.events[0].payload == BIG_PAYLOAD
            ending = Ending(Status.COMPLETED, Form.VALUE, BIG_PAYLOAD)
            await w.done(lease, unit(claimed.row, 1, ending=ending))
            assert (await w.row("p")).ending == ending

    async def test_no_context_is_not_an_empty_one(self) -> None:
        """A context that was not given is None, and a JSON null is a JSON null."""
        async with self.world() as w:
            await w.add("none")
            await w.add("null", context=b"null")
            assert (await w.row("none")).context is None
            assert (await w.row("null")).context == b"null"

    # --- S4.15: the storage tests of the predecessor -------------------------------------

    async def test_a_guid_an_error_a_custom_type_and_nothing(self) -> None:
        """S4.15 S0.14: each is a value of its own, and null is a value, not a missing one."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            guid = UUID("550e8400-e29b-41d4-a716-446655440000")
            given = [
                Checkpoint(Kind.GET, "guid", NO_INDEX, Form.VALUE, f'"{guid}"'.encode()),
                Checkpoint(Kind.DO, "error", NO_INDEX, Form.ERROR, b'{"type":"E","message":"m"}'),
                Checkpoint(Kind.DO, "custom", NO_INDEX, Form.VALUE, b'{"$":"Money","v":["1.50"]}'),
                Checkpoint(Kind.DO, "void", NO_INDEX, Form.VALUE, b"null"),
                Checkpoint(Kind.DO, "cancelled", NO_INDEX, Form.CANCELLED, b"null"),
            ]
            await w.done(lease, unit(row, 1, *given))
            assert bare((await w.history("p")).checkpoints) == given
            (outcome,) = await w.commit(lease, unit(row, 2, step("void", b'"ran again"')))
            assert [each.payload for each in outcome.held] == [b"null"]

    async def test_an_override_replaces_even_a_failure(self) -> None:
        """S4.07 S4.15: what is written to replace does so, whatever form was there."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            failed = Checkpoint(Kind.VAR, "v", NO_INDEX, Form.ERROR, b'{"type":"E"}', True)
            await w.done(lease, unit(row, 1, failed))
            await w.done(lease, unit(row, 2, latest("v", b"2")))
            assert bare((await w.history("p")).checkpoints) == [latest("v", b"2")]

    async def test_what_is_missing_is_none(self) -> None:
        """S4.15: no process is None, no step is no checkpoint; nothing is made up."""
        async with self.world() as w:
            assert list(await w.storage.read(["p"], history=True)) == [None]
            await w.add("p")
            assert await w.payloads("p") == {}
            assert await w.ids(prefix="q") == []

    async def test_the_pending_ids_are_exactly_those(self) -> None:
        """S4.15 S4.12: unfinished ones, each once; finished, set aside and purged ones not."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add("run", "wait", "end", "bad", "gone", "park", lease=lease)
            await w.add("new")
            await w.done(
                lease,
                unit(rows[1], 1, status=Status.WAITING),
                unit(rows[2], 1, ending=FINISH),
                unit(rows[3], 1, ending=QUARANTINE),
                unit(rows[4], 1, ending=FINISH),
                unit(rows[5], 1, status=Status.WAITING, leave=Leave.PARKED),
            )
            await w.storage.purge(["gone"])
            assert await w.ids(statuses=CLAIMABLE) == ["new", "park", "run", "wait"]
            lease = await w.after(lease, "host-2")
            assert sorted(await w.take(lease)) == ["new", "run", "wait"]
