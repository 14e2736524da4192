"""Uses that both type checkers refuse, each at its line. Never run.

mypy reports an ignore that hides nothing; that pyright refuses the same lines
and no others is for `tests/test_typing.py` to say.
"""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from durabletask import MemoryStorage, Process, ProcessHost, RetryPolicy


@dataclass
class Moved:
    place: str


host = ProcessHost(MemoryStorage())


async def add(a: int, b: int) -> int:
    return a + b


def text(n: int) -> str:
    return str(n)


def shout(text: str) -> str:
    return text.upper()


@host.process
async def process(proc: Process, amount: Decimal) -> str:
    await proc.do("too few", add, 1)  # type: ignore[arg-type]
    await proc.do("too many", add, 1, 2, 3)  # type: ignore[call-arg,arg-type]
    await proc.do("wrong type", text, "5")  # type: ignore[arg-type]
    await proc.do("no function", 5)  # type: ignore[call-overload]
    await proc.do("a call", add(1, 2))  # type: ignore[call-overload]
    await proc.do(5, add, 1, 2)  # type: ignore[call-overload]
    await proc.do("option", add, 1, 2, retries=5)  # type: ignore[call-overload]
    await proc.do("undo of text", add, 1, 2, undo=shout)  # type: ignore[call-arg,misc]
    await proc.do("undo of two", add, 1, 2, undo=add)  # type: ignore[call-arg,arg-type]
    await proc.do("undo called", text, 1, undo=shout("1"))  # type: ignore[call-overload]
    await proc.map("item", text, ["5"])  # type: ignore[arg-type]
    await proc.map("two", add, [1])  # type: ignore[arg-type]
    await proc.map("items", text, 5)  # type: ignore[call-overload]
    texts: list[int] = await proc.map("texts", text, [5])  # type: ignore[arg-type]
    await proc.version("float", 1.5)  # type: ignore[type-var]
    total = await proc.do("result", add, 1, 2)
    result: str = total  # type: ignore[assignment]
    five = await proc.get("value", 5)
    value: str = five  # type: ignore[assignment]
    counter = await proc.var("counter", 0)
    await counter.set("text")  # type: ignore[arg-type]
    counter.value = 5  # type: ignore[misc]
    await proc.delay("seconds", 5)  # type: ignore[arg-type]
    await proc.transaction("sync", text)  # type: ignore[arg-type]
    await proc.transaction("two", add)  # type: ignore[arg-type]
    got = await proc.event("number", int)
    number: str = got  # type: ignore[assignment]
    await proc.event("key", int, "k")  # type: ignore[call-overload]
    await proc.race("step", proc.do("step", text, 5))  # type: ignore[arg-type]
    raced = proc.event("raced", int)
    outcome: str = (await proc.race("race", raced)).of(raced)  # type: ignore[assignment]
    async with proc.timeout("text", "5"):  # type: ignore[arg-type]
        print(outcome)
    by_class = await proc.event(Moved)
    wrong_class: str = by_class  # type: ignore[assignment]
    await proc.event(Moved, Moved)  # type: ignore[call-overload]
    await proc.event(Moved("x"))  # type: ignore[call-overload]
    proc.events(5)  # type: ignore[call-overload]
    print(wrong_class, texts)
    for _ in proc.events("number", int):  # type: ignore[attr-defined]
        pass
    proc.id = "other"  # type: ignore[misc]
    return 5 if value else result + number  # type: ignore[return-value]


@host.process  # type: ignore[type-var]
def not_async(proc: Process) -> None: ...


async def outside() -> None:
    await host.spawn(process, "p")  # type: ignore[arg-type]
    await host.spawn(process, "p", "5")  # type: ignore[arg-type]
    await host.spawn(process, 5, Decimal(5))  # type: ignore[arg-type]
    await host.spawn(process, "p", connection=object())  # type: ignore[arg-type]
    await host.raise_event("p", "go", event_id=object())  # type: ignore[call-overload]
    await host.raise_event("p", Moved)  # type: ignore[call-overload]
    await host.raise_event("p", Moved("x"), "payload")  # type: ignore[call-overload]
    await host.spawn(process, "p", Decimal(5), on_existing="ignore")  # type: ignore[arg-type]
    await host.spawn(process, "p", Decimal(5), start_at=5)  # type: ignore[arg-type]
    await host.spawn(process, "p", Decimal(5), deadline="tomorrow")  # type: ignore[arg-type]
    await host.cancel(nmae="x")  # type: ignore[call-arg]
    await host.purge(created_from="yesterday")  # type: ignore[arg-type]
    await host.terminate(reason=5)  # type: ignore[arg-type]
    host.process(concurrency="5")  # type: ignore[call-overload]
    handle = await host.spawn(process, "p", Decimal(5))
    wrong: int = await handle.result()  # type: ignore[assignment]
    await host.get(process).result()  # type: ignore[call-overload]
    await handle.raise_event(5)  # type: ignore[call-overload]
    await handle.raise_event({"by": "x"})  # type: ignore[call-overload]
    await handle.cancel(5)  # type: ignore[arg-type]
    purged: str = await handle.purge()  # type: ignore[assignment]
    await handle.retry("key")  # type: ignore[call-arg]
    RetryPolicy(give_up_on=ValueError)  # type: ignore[arg-type]
    RetryPolicy(3)  # type: ignore[call-arg]
    ProcessHost(MemoryStorage(), errors=[int])  # type: ignore[list-item]
    ProcessHost("folder")  # type: ignore[arg-type]
    await host.stop(drain_s=timedelta(5))  # type: ignore[arg-type]
    ProcessHost(MemoryStorage(), context=["tenant"])  # type: ignore[list-item]
    ProcessHost(MemoryStorage(), retention=30)  # type: ignore[arg-type]
    print(wrong, purged)
