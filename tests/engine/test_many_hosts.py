"""Hosts side by side: results from anywhere, takeover, bounds, signals."""

import asyncio
import os
import signal
from datetime import timedelta

import pytest

from durabletask import MemoryStorage, Process, ProcessClient, ProcessHost, Status
from tests.engine.world import World, lease_of, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


async def waiting(proc: Process) -> str:
    return await proc.event("go", str)


@virtual
async def test_results_wherever_the_process_runs(world: World) -> None:
    """S2.08, S3.02: result() where it runs, on another host, on a client, before and after."""
    async with (
        world.host(waiting) as runs,
        world.host(waiting) as other,
        ProcessClient(world.storage) as client,
    ):
        handle = await runs.spawn(waiting, "p")
        waits = [
            asyncio.create_task(each.result())
            for each in (handle, other.get("p"), client.get(waiting, "p"), runs.get("p"))
        ]
        await settle()
        await client.raise_event("p", "go", "value")
        assert await asyncio.gather(*waits) == ["value"] * 4
        assert await client.get("p").result() == "value"
        assert await other.get(waiting, "p").result() == "value"


@virtual
async def test_a_result_that_takes_too_long(world: World) -> None:
    """S2.08: result(timeout) raises TimeoutError; the process goes on, and can be asked again."""
    async with world.host(waiting) as host:
        handle = await host.spawn(waiting, "p")
        with pytest.raises(TimeoutError):
            await handle.result(timeout=5)
        await handle.raise_event("go", "value")
        assert await handle.result(timeout=5) == "value"
        assert await handle.result(0.001) == "value"


@virtual
async def test_two_hosts_share_the_work_and_each_step_runs_once(world: World) -> None:
    """S3.02, F080: without a fault nothing runs twice, whoever runs it."""
    ran: list[str] = []

    async def step(name: str) -> None:
        await asyncio.sleep(1)
        ran.append(name)

    async def process(proc: Process) -> None:
        for n in range(3):
            await proc.do(f"s{n}", step, f"{proc.id}/{n}")

    world.storage = MemoryStorage(world.clock, lease_ttl_s=10)
    async with world.host(process) as first, world.host(process) as second:
        handles = [await (first if n % 2 else second).spawn(process, f"p{n}") for n in range(50)]
        await asyncio.gather(*(each.result() for each in handles))
    assert sorted(ran) == sorted(f"p{n}/{k}" for n in range(50) for k in range(3))


@virtual
async def test_a_dead_host_is_replaced_when_its_lease_ends(world: World) -> None:
    """S3.02, F016: another host takes over within the lease's time and a poll."""
    world.storage = MemoryStorage(world.clock, lease_ttl_s=10)
    first, second = world.host(waiting), world.host(waiting)
    await first.start()
    await second.start()
    await first.spawn(waiting, "p")
    await asyncio.sleep(3)
    world.wires[first].cut()
    died_s = world.clock.monotonic_s()
    while world.row("p").epoch == 1:
        await asyncio.sleep(0.1)
    assert world.clock.monotonic_s() - died_s < 11
    await second.raise_event("p", "go", "value")
    assert await second.get(waiting, "p").result() == "value"
    await second.stop()


@virtual
async def test_a_paused_host_cannot_write_any_more(world: World) -> None:
    """F016, G4: a zombie's record is refused; its run unwinds; the new owner's counts."""
    world.storage = MemoryStorage(world.clock, lease_ttl_s=10)
    ran: list[str] = []

    async def step(who: str) -> str:
        ran.append(who)
        return who

    async def process(proc: Process) -> str:
        await proc.event("go")
        return await proc.do("step", step, "x")

    first, second = world.host(process), world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    pause = asyncio.Event()

    async def held(call: str) -> None:
        await pause.wait()

    world.wires[first].before = held
    await asyncio.sleep(20)
    await second.start()
    await second.raise_event("p", "go")
    assert await second.get(process, "p").result() == "x"
    pause.set()
    world.wires[first].up()
    await asyncio.sleep(30)
    assert world.keys("p")[-1] == ("do", "step", "value")
    assert [each for each in world.wires[first].units if each.process_id == "p"][1:] == []
    # The zombie begins a new session and is of use again.
    await second.stop()
    handle = await first.spawn(process, "q")
    await handle.raise_event("go")
    assert await handle.result() == "x"
    await first.stop()


@virtual
async def test_identity_is_random_per_start(world: World) -> None:
    """F091: two hosts of one label are two hosts; neither is taken for the other."""
    world.storage = MemoryStorage(world.clock, lease_ttl_s=10)
    first, second = (world.host(waiting, label="pod-0") for _ in range(2))
    async with first, second:
        assert lease_of(first) != lease_of(second)
        await first.spawn(waiting, "p")
        await asyncio.sleep(100)
        assert world.row("p").epoch == 1
        assert (await second.get("p").info()).host == "pod-0"


@virtual
async def test_claims_are_bounded_by_what_a_host_may_hold(world: World) -> None:
    """S1.15 (rule 14): resident_max processes in memory; the rest when there is room."""
    from durabletask import Limits

    holding: list[int] = []

    async def process(proc: Process) -> None:
        assert host._session is not None
        holding.append(len(host._session.runs))
        await asyncio.sleep(1)

    async with ProcessClient(world.storage, processes=[process]) as client:
        for n in range(25):
            await client.spawn(process, f"p{n}")
    host = world.host(process, limits=Limits(resident_max=10))
    async with host:
        for n in range(25):
            await host.get(f"p{n}").result()
    assert max(holding) <= 10
    assert len(holding) == 25


@pytest.mark.parametrize("why", ["overdue", "suspected"])
@virtual
async def test_what_is_held_back_counts_as_what_a_host_holds(world: World, why: str) -> None:
    """S1.15 (rule 14): resident_max bounds those too that wait for their request or their turn."""
    from durabletask import Limits

    held: list[int] = []

    async def process(proc: Process) -> None:
        await asyncio.sleep(10)

    deadline = timedelta(seconds=5) if why == "overdue" else None
    async with ProcessClient(world.storage, processes=[process], clock=world.clock) as client:
        for n in range(25):
            await client.spawn(process, f"p{n}", deadline=deadline)
    for _ in range(0 if why == "overdue" else 3):
        dies = world.host(process)
        await dies.start()
        await asyncio.sleep(5)
        world.kill(dies)
    await asyncio.sleep(10)
    host = world.host(process, limits=Limits(resident_max=10))

    async def slow(call: str) -> None:
        held.append(sum(world.row(f"p{n}").owner is not None for n in range(25)))
        await asyncio.sleep(1 if call == "request" else 0)

    world.wires[host].before = slow
    async with host:
        for n in range(25):
            await host.get(f"p{n}").result()
    assert max(held) == 10


@virtual
async def test_spawns_beyond_what_a_host_may_hold_wait_their_turn(world: World) -> None:
    """S1.15 (rule 14): spawn goes on beyond resident_max; such processes run when there is room."""
    from durabletask import Limits

    async def process(proc: Process) -> int:
        await asyncio.sleep(1)
        return 1

    async with world.host(process, limits=Limits(resident_max=3)) as host:
        handles = [await host.spawn(process, f"p{n}") for n in range(20)]
        assert await asyncio.gather(*(each.result() for each in handles)) == [1] * 20


async def test_serve_ends_on_sigterm_and_drains() -> None:
    """F011: SIGTERM: serve() returns, the block drains, the step in flight is recorded."""
    begun = asyncio.Event()

    async def slow() -> str:
        begun.set()
        await asyncio.sleep(0.05)
        return "slow"

    async def process(proc: Process) -> None:
        try:
            await proc.do("slow", slow)
            await proc.event("go")
        finally:
            await proc.do("refund", nop)

    storage = MemoryStorage(lease_ttl_s=None)
    async with ProcessHost(storage, processes=[process]) as host:
        await host.spawn(process, "p")
        serving = asyncio.create_task(host.serve())
        await asyncio.sleep(0)
        await begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
    (snapshot,) = await storage.read(["p"], history=True)
    assert snapshot is not None
    assert [each.key for each in snapshot.checkpoints] == ["slow"]
    assert snapshot.row.status in (Status.RUNNING, Status.WAITING)


async def test_a_second_sigterm_is_not_ours() -> None:
    """F012: after the first signal the handlers are gone: a second one ends the program."""
    storage = MemoryStorage(lease_ttl_s=None)
    async with ProcessHost(storage) as host:
        serving = asyncio.create_task(host.serve())
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@virtual
async def test_processes_do_not_starve_each_other(world: World) -> None:
    """F116: a process with 5,000 parallel steps does not hold up another one's ten."""
    order: list[str] = []

    async def tick() -> None:
        await asyncio.sleep(0)

    async def big(proc: Process) -> None:
        await asyncio.gather(*(proc.do(f"k{n}", tick) for n in range(5_000)))
        await asyncio.gather(*(proc.do(f"l{n}", tick) for n in range(5_000)))
        order.append("big")

    async def small(proc: Process) -> None:
        for n in range(3):
            await proc.do(f"k{n}", tick)
        order.append("small")

    async with world.host(big, small) as host:
        handles = [await host.spawn(big, "big"), await host.spawn(small, "small")]
        await asyncio.gather(*(each.result() for each in handles))
    assert order == ["small", "big"]


@virtual
async def test_idle_hosts_ask_little_and_not_together(world: World) -> None:
    """F140, issue 3.3: an idle host asks at most twice a second in all, each at its own times."""
    world.storage = MemoryStorage(world.clock, lease_ttl_s=15.0)
    asked: dict[str, list[tuple[str, float]]] = {}

    def listen(host: ProcessHost, name: str) -> None:
        asked[name] = []

        async def note(call: str) -> None:
            asked[name].append((call, world.clock.monotonic_s()))

        world.wires[host].before = note

    hosts = [world.host(waiting) for _ in range(3)]
    async with hosts[0], hosts[1], hosts[2]:
        await hosts[0].spawn(waiting, "p")
        await asyncio.sleep(10)
        for n, host in enumerate(hosts):
            listen(host, f"host {n}")
        await asyncio.sleep(600)
        assert all(600 <= len(calls) <= 1200 for calls in asked.values())
        claims = [at for calls in asked.values() for call, at in calls if call == "claim"]
        assert len(set(claims)) > 0.99 * len(claims)
        await hosts[1].raise_event("p", "go", "now")
        assert await hosts[2].get(waiting, "p").result(timeout=1.0) == "now"
