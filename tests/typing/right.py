"""Uses that both type checkers accept, with the types that they must see. Never run."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import NamedTuple, assert_type
from uuid import UUID, uuid4

import attrs
import msgspec
import pydantic

from durabletask import (
    DelayResult,
    DurableCall,
    DurableWait,
    MemoryStorage,
    Process,
    ProcessClient,
    ProcessHandle,
    ProcessHost,
    ProcessInfo,
    ProcessPage,
    RaceResult,
    RetryPolicy,
    Status,
    Step,
    Var,
    current_step,
)
from durabletask.errors import StepError
from durabletask.storage import ProcessStorage
from durabletask.testing import VirtualClock, run_virtual


@dataclass
class Approval:
    by: str


class Connection:
    """As asyncpg's."""


class Bank:
    async def transfer(self, source: str, amount: Decimal) -> UUID: ...  # type: ignore[empty-body]

    def balance(self, account: str) -> Decimal:
        return Decimal(account)

    async def roll_back(self, entry: UUID) -> None: ...

    def forget(self, what: object) -> str:
        return str(what)


bank = Bank()


async def fetch(url: str, tries: int) -> bytes:
    return url.encode() * tries


async def ping() -> None: ...


async def book(connection: Connection) -> Approval:
    return Approval(str(connection))


async def untyped(connection: Connection) -> object:
    return connection


def parse(text: bytes) -> list[int]:
    return list(text)


class Paid(msgspec.Struct):
    amount: Decimal


class Moved(NamedTuple):
    place: str


@attrs.frozen
class Rejected:
    reason: str


class Shipped(pydantic.BaseModel):
    parcels: int


tenant: ContextVar[str] = ContextVar("tenant")

host = ProcessHost(
    MemoryStorage(),
    errors=[StepError],
    types=[Approval],
    retry=RetryPolicy(),
    context=[tenant],
    retention={"transfer": timedelta(days=30)},
)


@host.process(concurrency=5)
async def by_class(proc: Process) -> None:
    assert_type(await proc.event(Approval), Approval)
    assert_type(await proc.event(Paid, key="paid", timeout=5), Paid)
    assert_type(await proc.event(Moved), Moved)
    assert_type(await proc.event(Rejected), Rejected)
    assert_type(await proc.event(Shipped), Shipped)
    async for paid in proc.events(Paid):
        assert_type(paid, Paid)
        break
    approved, rejected = proc.event(Approval, key="a"), proc.event(Rejected, key="r")
    assert_type((await proc.race("race", approved, rejected)).of(rejected), Rejected)


@host.process
async def decide(proc: Process) -> None:
    approved = proc.event("approved", Approval, key="in race")
    deadline = proc.delay("deadline", timedelta(days=2))
    inner = proc.race("inner", deadline)
    result = await proc.race("decision", approved, inner)
    assert_type(result, RaceResult)
    assert_type(result.of(approved), Approval)
    assert_type(result.of(inner).of(deadline), DelayResult)
    assert_type(result.won(approved), bool)
    numbers: list[DurableWait[int]] = [proc.event("n", int, key=f"{n}") for n in range(3)]
    assert_type((await proc.race("any", *numbers)).of(numbers[0]), int)
    async with proc.timeout("limit", timedelta(days=2)) as limit:
        assert_type(limit.expired(), bool)


@host.process
async def transfer(proc: Process, source: str, amount: Decimal) -> str:
    undone = await proc.do("hold", bank.transfer, source, amount, undo=bank.roll_back)
    assert_type(undone, UUID)
    read = await proc.do("read", bank.balance, source, timeout=5, undo=bank.forget)
    assert_type(read, Decimal)
    assert_type(await proc.do("lambda", fetch, "url", 1, undo=lambda body: body.hex()), bytes)
    call = proc.do("debit", bank.transfer, source, amount)
    assert_type(call, DurableCall[UUID])
    assert_type(await call, UUID)
    assert_type(await proc.do("balance", bank.balance, source), Decimal)
    assert_type(await proc.do("fetch", fetch, "x", 3, retry=RetryPolicy(attempts_max=None)), bytes)
    assert_type(await proc.do("parse", parse, b"x", timeout=timedelta(seconds=1)), list[int])
    assert_type(await proc.do("ping", ping, timeout=1.5), None)
    fixed: Callable[[], Decimal] = partial(bank.balance, account=source)
    assert_type(await proc.do("partial", fixed), Decimal)

    assert_type(await proc.do("once", fetch, "x", 3, at_most_once=True), bytes)
    assert_type(proc.map("parse all", parse, [b"x", b"y"]), DurableCall[list[list[int]]])
    assert_type(await proc.map("balances", bank.balance, ("a", "b"), concurrency=5), list[Decimal])
    twice: Callable[[str], Awaitable[bytes]] = partial(fetch, tries=2)
    urls = (url for url in ["a", "b"])
    assert_type(
        await proc.map("fetch all", twice, urls, timeout=5, retry=RetryPolicy()), list[bytes]
    )
    await proc.report({"done": 5})
    await proc.report(Approval("carol"), type=Approval)
    assert_type(await proc.version("pricing", 2), int)
    assert_type(await proc.version("season", "autumn"), str)

    assert_type(await proc.get("id", uuid4), UUID)
    assert_type(await proc.get("async", ping), None)
    assert_type(await proc.get("value", 5), int)
    assert_type(await proc.get("typed", {"by": "x"}, type=Approval), Approval)

    assert_type(await proc.transaction("book", book), Approval)
    assert_type(await proc.transaction("any", untyped, type=UUID, retry=RetryPolicy()), UUID)

    counter = await proc.var("n", 0)
    assert_type(counter, Var[int])
    assert_type(counter.value, int)
    await counter.set(counter.value + 1)

    assert_type(await proc.delay("pause", timedelta(days=30)), DelayResult)
    assert_type(await proc.delay("until", datetime(2030, 1, 1, tzinfo=UTC)), DelayResult)
    assert_type(await proc.event("approved", Approval, timeout=timedelta(days=2)), Approval)
    assert_type(await proc.event("number", int, key="second"), int)
    async for approval in proc.events("more", Approval):
        assert_type(approval, Approval)
        break

    first, second = await asyncio.gather(proc.do("a", fetch, "a", 1), proc.do("b", parse, b""))
    assert_type(first, bytes)
    assert_type(second, list[int])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(proc.do("c", parse, b""))
    assert_type(task.result(), list[int])
    assert_type(await asyncio.wait_for(proc.do("d", parse, b""), 5), list[int])
    assert_type(current_step(), Step)
    await current_step().heartbeat({"page": 1})
    assert_type(proc.idempotency_key("debit"), str)
    return approval.by if False else source


@host.process(name="renamed", retry=RetryPolicy(delay_s=5))
async def short(proc: Process) -> int:
    return 1


async def outside() -> None:
    async with host:
        handle = await host.spawn(transfer, "transfer/1", "alice", Decimal(10), tags={"a": "b"})
        assert_type(handle, ProcessHandle[str])
        assert_type(await handle.result(timeout=5), str)
        assert_type(await host.get(short, "x").result(), int)
        assert_type(await host.spawn(short, "x"), ProcessHandle[int])
        await host.raise_event("transfer/1", "approved", Approval("carol"), event_id="1")
        await handle.raise_event("approved")
        for event in (Approval("carol"), Paid(Decimal(5)), Moved("attic"), Rejected("late")):
            await handle.raise_event(event)
            await host.raise_event("transfer/1", event, event_id="2")
        await handle.raise_event(Shipped(parcels=3))
        later = await host.spawn(
            short, "y", start_at=timedelta(hours=1), deadline=datetime.now(UTC), on_existing="error"
        )
        assert_type(await later.cancel("no longer needed"), None)
        assert_type(await later.terminate(output={"refund": 5}), None)
        await later.suspend("audit")
        await later.resume()
        assert_type(await later.retry(from_key="debit"), None)
        assert_type(await later.purge(recursive=False), int)
        assert_type(await host.cancel(name="transfer", tags={"a": "b"}, reason="closed"), int)
        assert_type(await host.retry(status=Status.FAILED, created_from=datetime.now(UTC)), int)
        assert_type(await host.purge(all=True), int)
        page = await host.list_page(limit=50, parent="transfer/1")
        assert_type(page, ProcessPage)
        assert_type(page.cursor, str | None)
        connection = object()  # asyncpg's, with PostgresStorage
        held = await host.spawn(transfer, "t/2", "alice", Decimal(10), connection=connection)
        assert_type(held, ProcessHandle[str])
        await host.raise_event("t/2", "approved", connection=connection)
        await handle.raise_event("approved", connection=connection)
        assert_type(await handle.info(), ProcessInfo)
        async for info in host.list(status=[Status.FAILED, "waiting"], prefix="x"):
            assert_type(info.status, Status)
    async with ProcessClient(MemoryStorage(), processes=[transfer]) as client:
        await client.spawn(transfer, "transfer/1", "alice", Decimal(10))


storage: ProcessStorage = MemoryStorage()


async def main(clock: VirtualClock) -> int:
    return 1


assert_type(run_virtual(main), int)
