"""Programs that end in odd ways, one by one; run as `python -m tests.kill.deaths WAY FOLDER`.

Each spawns one process whose step `odd` does something odd the first time
that it runs, and says on standard output what it has seen.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from durabletask import Process, ProcessHost, current_step
from durabletask.errors import DurableTaskError, ProcessInterrupted
from durabletask_filesystem import FileSystemStorage

ID = "odd/1"
Odd = Callable[["Program"], Awaitable[str]]


class Program:
    """A host with one process, whose step does the odd thing once."""

    def __init__(self, folder: Path, odd: Odd) -> None:
        self.host = ProcessHost(FileSystemStorage(folder / "state"), processes=[self.work])
        self.marker = folder / "odd was done"
        self.in_step = asyncio.Event()
        self.proc: Process | None = None
        self._odd = odd

    async def work(self, proc: Process) -> str:
        """Do something, then something odd, then something else; take it all back on failure."""
        self.proc = proc
        try:
            await proc.do("before", self.say, "before")
            odd = await proc.do("odd", self.be_odd)
            await proc.do("after", self.say, "after")
        except BaseException:
            await proc.do("refund", self.say, "refund")
            raise
        return odd

    async def say(self, word: str) -> str:
        """Have an effect that the test can read."""
        print(word, flush=True)
        return word

    async def be_odd(self) -> str:
        """Do the odd thing, but only once."""
        if self.marker.exists():
            return "even"
        self.marker.touch()
        self.in_step.set()
        return await self._odd(self)


async def exit_at_once(program: Program) -> str:
    """Leave without any ado, as a crash in an extension would."""
    os._exit(9)


async def leave(program: Program) -> str:
    """Raise SystemExit inside a step."""
    sys.exit(7)


async def interrupt(program: Program) -> str:
    """Raise KeyboardInterrupt inside a step, as control-C may."""
    raise KeyboardInterrupt


async def hang(program: Program) -> str:
    """Wait until the program is ended from outside."""
    print("hanging", flush=True)
    await asyncio.Event().wait()
    return "never"


async def fork(program: Program) -> str:
    """Fork, and try to go on working in the child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, await _work_in_child(program))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        print(answers.read().decode(), flush=True)
    os.waitpid(pid, 0)
    return current_step().key


async def _work_in_child(program: Program) -> bytes:
    """Return how each way to record something from a forked child ends."""
    proc, host = program.proc, program.host
    assert proc is not None
    answers = []
    tries: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: proc.do("stolen", program.say, "stolen"),
        lambda: host.spawn(program.work, "odd/2"),
        lambda: host.raise_event(ID, "stolen"),
    )
    for attempt in tries:
        try:
            await asyncio.wait_for(attempt(), 5)
        except ProcessInterrupted:
            answers.append("interrupted")
        except (DurableTaskError, RuntimeError) as error:
            answers.append(type(error).__name__)
        else:
            answers.append("DONE")
    return " ".join(answers).encode()


async def finish(program: Program) -> None:
    """Run the process to its end, or until a signal comes."""
    async with program.host:
        handle = await program.host.spawn(program.work, ID)
        result = asyncio.ensure_future(handle.result())
        serving = asyncio.ensure_future(program.host.serve())
        await asyncio.wait([result, serving], return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            print(f"result {result.result()}", flush=True)
        for each in (result, serving):
            each.cancel()
        await asyncio.gather(result, serving, return_exceptions=True)


async def walk_away(program: Program) -> None:
    """Start, and return in the middle of a step without stopping the host."""
    await program.host.start()
    await program.host.spawn(program.work, ID)
    await program.in_step.wait()


WAYS: dict[str, Odd] = {
    each.__name__: each for each in (exit_at_once, leave, interrupt, hang, fork)
}


def main() -> None:
    """Run one of them."""
    way, folder = sys.argv[1], Path(sys.argv[2])
    if way == "walk_away":
        # Neither `asyncio.run` nor `stop`: the interpreter ends with everything in flight.
        loop = asyncio.new_event_loop()
        loop.run_until_complete(walk_away(Program(folder, hang)))
    else:
        asyncio.run(finish(Program(folder, WAYS[way])))


if __name__ == "__main__":
    main()
