"""How long does a folder take to open that holds 1,000,000 checkpoints of finished processes?

100,000 processes of 10 checkpoints, and with `--wide` 1,000,000 of one. Opened
in a fresh program (cold Python, warm page cache, imports not counted), from
before the first call until a lease is held and a claim has found nothing to
run: what a host's start waits for. After a clean close, and after the last
holder died. The ratio is to reading the bytes of the folder once.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks._frame import (
    conclude,
    disk_folder,
    file_bytes,
    fresh_program,
    options,
    rss_bytes,
    tell,
)
from durabletask.storage import (
    NO_INDEX,
    Checkpoint,
    Ending,
    Form,
    Kind,
    NewProcess,
    Status,
    Unit,
)
from durabletask_filesystem import FileSystemStorage

SHAPES = ((100_000, 10), (1_000_000, 1))
AT_ONCE = 1_000
MUST_REACH_S = 3.0
NAME = "work"


async def fill(folder: Path, processes: int, checkpoints: int) -> None:
    """Write the processes through the seam, a unit for each checkpoint, as a host would."""
    storage = FileSystemStorage(folder)
    lease = await storage.open_lease("0" * 32, "filler")
    for start in range(0, processes, AT_ONCE):
        ids = [f"process/{number}" for number in range(start, min(start + AT_ONCE, processes))]
        await storage.create([_new(process_id) for process_id in ids], lease)
        for number in range(checkpoints):
            units = [_unit(process_id, number, number + 1 == checkpoints) for process_id in ids]
            await storage.commit(lease, units)
    await storage.close_lease(lease)
    await storage.close()


def _new(process_id: str) -> NewProcess:
    return NewProcess(
        process_id=process_id, name=NAME, input=b"[]", input_digest="0" * 40, creation_id="0" * 32
    )


def _unit(process_id: str, number: int, last: bool) -> Unit:
    checkpoint = Checkpoint(Kind.DO, f"step {number}", NO_INDEX, Form.VALUE, b"%d" % number)
    return Unit(
        process_id=process_id,
        incarnation=1,
        epoch=1,
        seq=number + 1,
        checkpoints=(checkpoint,),
        ending=Ending(Status.COMPLETED, Form.VALUE, b"null") if last else None,
    )


async def open_once(folder: Path, clean: bool) -> None:
    """Open the folder, print what it took, and close it or die."""
    before = rss_bytes()
    begun_s = perf_counter()
    storage = FileSystemStorage(folder)
    lease = await storage.open_lease(os.urandom(16).hex(), "opener")
    claims = await storage.claim(lease, "first", (NAME,), count_max=100)
    opened_s = perf_counter() - begun_s
    assert not claims.claimed
    print(json.dumps({"s": opened_s, "rss": rss_bytes() - before}), flush=True)
    if not clean:
        os._exit(0)
    await storage.close_lease(lease)
    await storage.close()


def child(arguments: Sequence[str]) -> None:
    """Do one thing in this program."""
    what, folder = arguments[0], Path(arguments[1])
    if what == "fill":
        asyncio.run(fill(folder, int(arguments[2]), int(arguments[3])))
        print("{}")
    else:
        asyncio.run(open_once(folder, what == "clean"))


def read_all(folder: Path) -> float:
    """Read every byte of the folder; return the seconds."""
    begun_s = perf_counter()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.read_bytes()
    return perf_counter() - begun_s


def measure(folder: Path, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Open the folder again and again, in turns with reading it."""
    told: dict[str, list[dict[str, float]]] = {"read": [], "clean": [], "died": []}
    for _ in range(repeats):
        told["read"].append({"s": read_all(folder)})
        # In this order the first finds what `fill` closed, and each what the one before left.
        fresh_program(__file__, "child", "clean", folder)
        told["clean"].append(fresh_program(__file__, "child", "died", folder))
        told["died"].append(fresh_program(__file__, "child", "clean", folder))
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["child"]:
        return child(arguments[1:])
    wide = "--wide" in arguments
    chosen = options("opening a folder", [each for each in arguments if each != "--wide"], 5)
    for shape in SHAPES if wide or chosen.tiny else SHAPES[:1]:
        processes, checkpoints = chosen.size(shape[0], 30), shape[1]
        with disk_folder(chosen) as parent:
            folder = parent / "state"
            fresh_program(__file__, "child", "fill", folder, processes, checkpoints)
            size = file_bytes(folder)
            told = measure(folder, chosen.repeats)
        seconds = {name: [each["s"] for each in runs] for name, runs in told.items()}
        shown = {
            f"reading its {size / 1e6:,.0f} MB": seconds["read"],
            "opening after a clean close": seconds["clean"],
            "opening after a death": seconds["died"],
        }
        tell(f"s, {processes:,} finished × {checkpoints}", shown, ".3f")
        tell("MB private after opening", {"": [each["rss"] / 1e6 for each in told["died"]]}, ".1f")
        ratio = [a / b for a, b in zip(seconds["died"], seconds["read"], strict=True)]
        conclude("ratio, opening after a death to reading", ratio)
        conclude("s to open after a death", seconds["died"], at_most=MUST_REACH_S)
    return None


if __name__ == "__main__":
    main()
