"""Other programs reach a running host's folder through letters."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from durabletask.errors import (
    InvalidIdError,
    StorageBusyError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import (
    Action,
    Control,
    Ending,
    Form,
    Kind,
    NewEvent,
    NewProcess,
    Place,
    Query,
    Refusal,
    Status,
    Unit,
)
from durabletask_filesystem import FileSystemStorage, _inbox
from durabletask_filesystem._client import Client
from durabletask_filesystem._disk import RealFolder
from durabletask_filesystem._files import File
from durabletask_filesystem._requests import Read


def new(process_id: str) -> NewProcess:
    return NewProcess(
        process_id=process_id, name="fn", input=b"[1]", input_digest="d", creation_id="c"
    )


@asynccontextmanager
async def two(path: Path, timeout_s: float = 30.0) -> AsyncIterator[tuple[FileSystemStorage, ...]]:
    """Two storages of one folder, as two programs have them."""
    host = FileSystemStorage(path)
    client = FileSystemStorage(path, reply_timeout_s=timeout_s)
    try:
        yield host, client
    finally:
        await client.close()
        await host.close()


async def test_a_client_reaches_the_folder_of_a_running_host(tmp_path: Path) -> None:
    """Issue item 4: spawn, raise, read, list and purge from another program; the host is told."""
    async with two(tmp_path) as (host, client):
        lease = await host.open_lease("h1", "host")
        told: list[str | None] = []
        host.subscribe(told.append)
        (created,) = await client.create([new("a")])
        assert created.fresh
        assert (await host.read(["a"]))[0] == (await client.read(["a"]))[0]
        event = NewEvent(process_id="a", event_id="e", name="n", payload=b'{"x":[1, 2]}')
        delivered = await client.deliver([event], mailbox_max=10)
        assert delivered[0].event is not None
        assert delivered[0].event.payload == b'{"x":[1, 2]}'
        (snapshot,) = await client.read(["a"], history=True)
        assert snapshot is not None
        assert len(snapshot.events) == 1
        assert [row.process_id for row in (await client.list(Query())).rows] == ["a"]
        assert await client.purge(["a", "b"]) == (Refusal.NOT_FINISHED, Refusal.UNKNOWN_PROCESS)
        assert told.count("a") >= 2
        claims = await host.claim(lease, "c1", ["fn"], count_max=1)
        assert [each.row.process_id for each in claims.claimed] == ["a"]
        assert list((tmp_path / "inbox").iterdir()) == []


async def test_a_client_asks_of_the_processes_of_a_running_host(tmp_path: Path) -> None:
    """Issue item 2: every request goes by letter, with all it carries; the host hears of it."""
    async with two(tmp_path) as (host, client):
        lease = await host.open_lease("h1", "host")
        await host.create([new("a"), new("b")], lease)
        told: list[str | None] = []
        host.subscribe(told.append)
        ended = Ending(Status.TERMINATED, Form.ERROR, b' {"type":"E"}')
        suspend = Control(
            process_id="a", action=Action.SUSPEND, request_id="s1", reason=b'{"why": [1, 2]}'
        )
        terminate = Control(process_id="b", action=Action.TERMINATE, request_id="t1", ending=ended)
        nobody = Control(process_id="c", action=Action.RESUME, request_id="r1")
        first, second, third = await client.request([suspend, terminate, nobody])
        assert first.row is not None
        assert (first.row.status, first.row.suspend_reason) == (
            Status.SUSPENDED,
            b'{"why": [1, 2]}',
        )
        assert second.row is not None
        assert (second.row.ending, second.row.owner) == (ended, "h1")
        assert third.refused is Refusal.UNKNOWN_PROCESS
        claims = await host.claim(lease, "c1", ["fn"], count_max=9)
        assert [(each.row.process_id, each.fresh) for each in claims.claimed] == [
            ("a", False),
            ("b", False),
        ]
        assert {"a", "b"} <= set(told)


async def test_a_retry_goes_by_letter(tmp_path: Path) -> None:
    """Rule 9: what is to be forgotten and restored arrives with the request."""
    async with two(tmp_path) as (host, client):
        lease = await host.open_lease("h1", "host")
        await host.create([new("a")], lease)
        failed = Ending(Status.FAILED, Form.ERROR, b'{"type":"E"}')
        unit = Unit(process_id="a", incarnation=1, epoch=1, seq=1, ending=failed)
        await host.commit(lease, [unit])
        retry = Control(
            process_id="a",
            action=Action.RETRY,
            request_id="r1",
            incarnation=1,
            epoch=1,
            forget=(Place(Kind.DO, "one", 0),),
            restores=(1,),
        )
        for _ in range(2):
            (answer,) = await client.request([retry])
            assert answer.row is not None
            assert (answer.row.status, answer.row.epoch) == (Status.RUNNING, 2)


async def test_a_second_host_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    """F033: what takes a lease never goes by letter."""
    async with two(tmp_path) as (host, client):
        await host.open_lease("h1", "host")
        with pytest.raises(StorageBusyError, match=r"pid \d+"):
            await client.open_lease("h2", "other")


async def test_without_a_host_every_program_serves_itself(tmp_path: Path) -> None:
    """A client holds the folder only while it answers, so that a host can start at any time."""
    async with two(tmp_path) as (host, client):
        await client.create([new("a")])
        await host.create([new("b")])
        lease = await host.open_lease("h1", "host")
        await client.create([new("c")])
        await host.close_lease(lease)
        assert [row.process_id for row in (await client.list(Query())).rows] == ["a", "b", "c"]
        lease = await client.open_lease("h2", "other")
        assert (await client.claim(lease, "c", ["fn"], count_max=9)).more is False


async def test_calls_of_one_client_keep_their_order(tmp_path: Path) -> None:
    """G8: events of one sender arrive in the order in which it sent them."""
    async with two(tmp_path) as (host, client):
        await host.open_lease("h1", "host")
        await client.create([new("a")])
        events = [
            NewEvent(process_id="a", event_id=f"e{n}", name="n", payload=b"%d" % n)
            for n in range(30)
        ]
        await asyncio.gather(*(client.deliver([event], mailbox_max=100) for event in events))
        (snapshot,) = await host.read(["a"], history=True)
        assert snapshot is not None
        assert [event.payload for event in snapshot.events] == [event.payload for event in events]


async def test_no_reply_is_an_unknown_outcome(tmp_path: Path) -> None:
    """A holder of the folder that does not answer: unknown, and the letter is taken back."""
    folder = RealFolder(tmp_path)
    async with two(tmp_path, timeout_s=0.02) as (host, client):
        await host.create([new("a")])
        folder.lock("LOCK", b"{}")
        with pytest.raises(StorageUnknownError):
            await client.create([new("b")])
        assert list((tmp_path / "inbox").iterdir()) == []
        folder.unlock()
        assert (await client.create([new("b")]))[0].fresh


async def test_a_client_whose_host_dies_serves_itself(tmp_path: Path) -> None:
    """F003: the letter of a dead host is taken back and the call is done without it."""
    folder = RealFolder(tmp_path)
    async with two(tmp_path) as (host, client):
        await host.create([new("a")])
        folder.lock("LOCK", b"{}")
        call = asyncio.ensure_future(client.create([new("b")]))
        inbox = tmp_path / "inbox"
        while not list(inbox.glob("*.req")):
            await asyncio.sleep(0)
        folder.unlock()
        assert (await call)[0].fresh


class _Full(RealFolder):
    """A folder that takes so many new files and no more, or loses one that it has."""

    def __init__(self, path: Path, room: int) -> None:
        super().__init__(path)
        self._room = room

    def create(self, name: str) -> File:
        if self._room == 0:
            raise OSError(errno.ENOSPC, "planted")
        self._room -= 1
        return super().create(name)

    def read(self, name: str, offset: int = 0, count: int = -1) -> bytes:
        raise OSError(errno.EIO, "planted")


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_letter_that_was_sent_is_not_called_unwritten(tmp_path: Path, room: int) -> None:
    """F027 F053: the folder refuses the second letter, or the reply: the first may be read."""
    (tmp_path / "inbox").mkdir()
    client = Client(_Full(tmp_path, room), timeout_s=60.0)
    requests = [Read(("a",)), Read(("b",))]
    answers = client.ask(requests, datetime.now(UTC), lambda: False)
    unwritten, unknown = StorageUnavailableError, StorageUnknownError
    assert answers is not None
    assert [type(each) for each in answers] == [unknown] * room + [unwritten] * (2 - room)
    assert all("planted" in str(each) for each in answers)
    assert list((tmp_path / "inbox").iterdir()) == []


async def test_a_letter_that_cannot_be_written_harms_no_other(tmp_path: Path) -> None:
    """F121: a lone surrogate is refused as it is by the folder itself; its neighbour is done."""
    async with two(tmp_path) as (host, client):
        await host.open_lease("h1", "host")
        calls = (client.create([new("a")]), client.create([new("\ud800")]))
        done, refused = await asyncio.gather(*calls, return_exceptions=True)
        assert not isinstance(done, BaseException)
        assert done[0].fresh
        assert isinstance(refused, InvalidIdError)


def test_a_reply_of_another_version_is_an_unknown_outcome(tmp_path: Path) -> None:
    """F053: what cannot be understood says nothing; the error is ours, and says what to do."""
    (tmp_path / "inbox").mkdir()
    folder = RealFolder(tmp_path)
    _inbox._put(folder, "x", _inbox.REPLY, b'{"answer":{"of":"tomorrow"}}')
    with pytest.raises(StorageUnknownError, match="the same version"):
        _inbox.fetch(folder, "x", Read(("a",)))


class _FullOnce(RealFolder):
    """A folder that refuses the next writing when told to."""

    full = False

    def open_end(self, name: str) -> File:
        if self.full:
            self.full = False
            raise OSError(errno.ENOSPC, "planted")
        return super().open_end(name)


@pytest.mark.parametrize("opened", [True, False])
async def test_a_letter_is_not_called_unwritten_by_who_serves_itself(
    tmp_path: Path, opened: bool
) -> None:
    """F027 F053: the host may have done it before it let go; the disk is full for the second."""
    other, mine = RealFolder(tmp_path), _FullOnce(tmp_path)
    async with two(tmp_path) as (host, _):
        await host.create([new("a")])
        client = FileSystemStorage(tmp_path, folder=mine)
        if opened:
            await client.read(["a"])
        other.lock("LOCK", b"{}")
        call = asyncio.ensure_future(client.create([new("b")]))
        while not list((tmp_path / "inbox").glob("*.req")):
            await asyncio.sleep(0)
        mine.full = True
        other.unlock()
        with pytest.raises(StorageUnknownError, match="planted"):
            await call
        assert list((tmp_path / "inbox").iterdir()) == []
        assert (await client.create([new("b")]))[0].fresh
        await client.close()


async def test_letters_of_no_use_are_removed(tmp_path: Path) -> None:
    """A late or broken request is not executed, and old replies are cleaned away."""
    folder = RealFolder(tmp_path)
    async with two(tmp_path) as (host, _):
        await host.create([new("a")])
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        _inbox.send(folder, "late-1", Read(("a",)), long_ago)
        (tmp_path / "inbox" / "broken-1.req").write_bytes(b"\0" * 40)
        (tmp_path / "inbox" / "old-1.rep").write_bytes(b"x")
        lease = await host.open_lease("h1", "host")
        await host.renew(lease)
        await host.renew(lease)
        assert list((tmp_path / "inbox").iterdir()) == []
