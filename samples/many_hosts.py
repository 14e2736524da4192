"""Three hosts on one Postgres: one is killed, one is paused, and nothing is lost or done twice.

Each host is a program of its own with three orders. All have packed and are
asking a slow service for the payment when one of them gets SIGKILL and another
one SIGSTOP. The third continues what they had. When the paused one is woken up
it believes that nothing has happened, and is refused.

    python samples/many_hosts.py

Needs nothing but the packages for development: it starts a Postgres of its own
and throws it away. Ends by itself after a few seconds.
"""

import asyncio
import logging
import signal
import sys
from asyncio.subprocess import PIPE
from asyncio.subprocess import Process as Program

from durabletask import Process, ProcessClient, ProcessHost, current_step
from durabletask_postgres import PostgresStorage
from durabletask_postgres.testing import ThrowAwayPostgres

LEASE_TTL_S = 2.0  # 15 where nobody waits for the end of a show
WAIT_MAX_S = 60.0  # for anything; longer means that something is broken


# --- a host: the program that is killed and paused ----------------------------------------------


class PaymentService:
    """Stands for a slow service of somebody else: it answers when the show has come so far."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()

    async def pay(self, order: str) -> None:
        """Pay; a service in earnest would know a repeat by the idempotency key."""
        step = current_step()
        say(f"asks {order} {step.idempotency_key}")
        await self.answers.wait()


here = ""
service = PaymentService()


async def pack(order: str) -> str:
    """Stand for work that is done at once."""
    return here


async def pay(order: str) -> str:
    """Stand for work that takes long, in whose middle the host may die."""
    await service.pay(order)
    return here


async def fulfil(proc: Process) -> tuple[str, str]:
    """Pack, then pay. The result tells which host has recorded which step."""
    packed_by = await proc.do("pack", pack, proc.id)
    paid_by = await proc.do("pay", pay, proc.id)
    return packed_by, paid_by


class Loudspeaker(logging.Handler):
    """Tells what the library warns of."""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the first line of a message."""
        say(f"warns {record.getMessage().splitlines()[0]}")


def say(line: str) -> None:
    """Tell the show."""
    print(line, flush=True)


async def be_host(label: str, dsn: str, orders: list[str]) -> None:
    """Run a host until the input ends; a line of it says that the service answers from now on."""
    global here
    here = label
    logging.getLogger("durabletask").addHandler(Loudspeaker())
    storage = PostgresStorage(dsn, lease_ttl_s=LEASE_TTL_S)
    async with ProcessHost(storage, processes=[fulfil], label=label) as host:
        for order in orders:
            await host.spawn(fulfil, order)
        while await asyncio.to_thread(sys.stdin.readline):
            service.answers.set()


# --- the show -----------------------------------------------------------------------------------


class Player:
    """One host as seen from outside: what it says, and what is done to it."""

    def __init__(self, label: str, orders: list[str], program: Program) -> None:
        self.label = label
        self.orders = orders
        self.program = program
        self.said: list[str] = []
        self._news = asyncio.Condition()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, label: str, dsn: str, orders: list[str]) -> "Player":
        """Start a host as a program of its own."""
        command = [sys.executable, __file__, label, dsn, *orders]
        program = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        return cls(label, orders, program)

    async def hear(self, beginning: str) -> str:
        """Wait until the host has said a line that begins like this; return the rest of it."""

        def heard() -> str | None:
            return next((line for line in self.said if line.startswith(beginning)), None)

        async with asyncio.timeout(WAIT_MAX_S), self._news:
            line = await self._news.wait_for(heard)
        return str(line).removeprefix(beginning).strip()

    async def ask_for_payment(self, orders: list[str]) -> None:
        """Wait until the host has asked for the payment of all these orders."""
        for order in orders:
            await self.hear(f"asks {order} ")

    def let_service_answer(self) -> None:
        """Let the service answer this host from now on."""
        assert self.program.stdin is not None
        self.program.stdin.write(b"answer\n")

    async def stop(self) -> None:
        """Stop the host in order, and wait for its end."""
        assert self.program.stdin is not None
        self.program.stdin.close()
        await self.program.wait()
        await self._listening

    async def end(self) -> None:
        """End the host whatever state it is in."""
        if self.program.returncode is None:
            self.program.kill()
        await self.stop()

    async def _listen(self) -> None:
        assert self.program.stdout is not None
        async for line in self.program.stdout:
            async with self._news:
                self.said.append(line.decode().rstrip())
                self._news.notify_all()


async def play(dsn: str, a: Player, b: Player, c: Player) -> None:
    """Kill A, pause B, and tell what becomes of their orders."""
    loop = asyncio.get_running_loop()
    for player in (a, b, c):
        await player.ask_for_payment(player.orders)
        print(f"   {player.label} has packed {', '.join(player.orders)} and asks for the payment")

    print("A is killed (SIGKILL), B is paused (SIGSTOP)")
    began_s = loop.time()
    a.program.kill()
    b.program.send_signal(signal.SIGSTOP)
    for gone, why in ((a, "its session is gone"), (b, "its lease has ended")):
        await c.ask_for_payment(gone.orders)
        after_s = loop.time() - began_s
        print(f"   {after_s:.1f} s later: {why}, so C continues {', '.join(gone.orders)}")

    print("the service answers C")
    c.let_service_answer()
    async with ProcessClient(PostgresStorage(dsn), processes=[fulfil]) as client:
        results: dict[str, tuple[str, str]] = {}
        for order in a.orders + b.orders + c.orders:
            results[order] = await client.get(fulfil, order).result(WAIT_MAX_S)
        print("   all orders are paid")

        print("B is woken up (SIGCONT), and the service answers B")
        b.let_service_answer()
        b.program.send_signal(signal.SIGCONT)
        print(f"   B is refused, its lease is lost{await b.hear('warns the lease is lost')}")
        await c.stop()
        await client.spawn(fulfil, "order/10")
        _, paid_by = await client.get(fulfil, "order/10").result(WAIT_MAX_S)
        print(f"   {paid_by} goes on under a new identity: C was stopped, and B serves order/10")

        for order, result in results.items():
            assert await client.get(fulfil, order).result() == result, "a record never changes"
        tell_records(results, [a, b, c])


def tell_records(results: dict[str, tuple[str, str]], players: list[Player]) -> None:
    """Show who did what, and what of it is recorded."""
    print("order      packed by   payment asked by   recorded by")
    for order, (packed_by, paid_by) in results.items():
        asked = {
            player.label: line.split()[2]
            for player in players
            for line in player.said
            if line.startswith(f"asks {order} ")
        }
        assert len(set(asked.values())) == 1, "a repeat has the idempotency key of the first"
        print(f"{order:10} {packed_by:11} {' and '.join(asked):18} {paid_by}")


async def show() -> None:
    """Start everything, play, and leave nothing behind."""
    with ThrowAwayPostgres() as server:
        print("three hosts, each a program of its own, on one Postgres")
        players: list[Player] = []
        try:
            for number, label in enumerate("ABC"):
                orders = [f"order/{number * 3 + place}" for place in (1, 2, 3)]
                players.append(await Player.start(label, server.dsn, orders))
            a, b, c = players
            await play(server.dsn, a, b, c)
        finally:
            for player in players:
                await player.end()


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            asyncio.run(show())
        case [label, dsn, *orders]:
            asyncio.run(be_host(label, dsn, orders))
        case _:
            sys.exit(__doc__)
