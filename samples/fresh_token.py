"""Plain code between steps runs on every resume; only steps are recorded.

So what must be fresh is fetched in plain code: an access token, a connection,
the configuration of today. What must stay goes through `do` or `get`.

    python samples/fresh_token.py [folder]
"""

import asyncio
import sys
from itertools import count
from pathlib import Path

from durabletask import Process, ProcessHost
from durabletask_filesystem import FileSystemStorage

PARTS = 4
PROCESS_ID = "upload/holiday.mov"

tokens = count(1)


def fetch_token() -> str:
    """Stand for a login; the token would be stale after a restart."""
    token = f"token {next(tokens)}"
    print(f"   plain code: {token}")
    return token


async def upload_part(token: str, part: int) -> None:
    """Stand for a request that needs a fresh token."""
    print(f"   step: part {part} uploaded with {token}")


async def upload(proc: Process, name: str) -> str:
    """Upload a file in parts; halfway somebody must say that there is room."""
    token = fetch_token()  # not recorded, so every start of the program fetches a new one
    for part in range(1, PARTS + 1):
        if part == PARTS // 2 + 1:
            await proc.event("room")
        await proc.do(f"part {part}", upload_part, token, part)
    return f"{name} is complete"


async def main(folder: Path) -> None:
    """Live through two starts of the program."""
    print("first start")
    async with ProcessHost(FileSystemStorage(folder), processes=[upload]) as host:
        handle = await host.spawn(upload, PROCESS_ID, "holiday.mov")
        # Somebody else's process can only be looked at.
        while not ((info := await handle.info()).waits or info.finished_at):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    print("the program ends; second start")
    async with ProcessHost(FileSystemStorage(folder), processes=[upload]) as host:
        if info.finished_at is None:
            await host.raise_event(PROCESS_ID, "room")
        print(f"   result: {await host.get(upload, PROCESS_ID).result()}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "state/fresh_token")))
