"""A saga in one async function: register a user, wait for the confirmation, greet.

The program ends in the middle, while the process waits for the user to click a
link. The next start goes on at that very place: nobody is created twice and no
mail is sent twice.

    python samples/user_registration.py [folder]

Run it again with the same folder: everything has its result, nothing runs.
"""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

from durabletask import Process, ProcessHost
from durabletask.errors import EventTimeoutError
from durabletask_filesystem import FileSystemStorage

PROCESS_ID = "registration/carol@example.org"


async def create_user(user_id: UUID, email: str) -> None:
    """Stand for a row in a table of users."""
    print(f"   step: user {email} created")


async def send_mail(email: str, text: str) -> None:
    """Stand for a mail server."""
    print(f"   step: mail to {email}: {text}")


async def set_active(user_id: UUID, active: bool) -> None:
    """Stand for an update of the row."""
    print(f"   step: user is {'active' if active else 'removed'}")


async def register(proc: Process, email: str) -> str:
    """Create a user who has two days to confirm the address."""
    user_id = await proc.get("user id", uuid4)  # drawn once; the same after every restart
    await proc.do("create user", create_user, user_id, email)
    await proc.do("ask", send_mail, email, "please confirm your address")
    try:
        await proc.event("confirmed", timeout=timedelta(days=2))
    except EventTimeoutError:
        await proc.do("remove user", set_active, user_id, False)
        return "removed"
    await proc.do("activate", set_active, user_id, True)
    await proc.do("welcome", send_mail, email, "welcome!")
    return "active"


async def main(folder: Path) -> None:
    """Live through two starts of the program."""
    print("first start")
    async with ProcessHost(FileSystemStorage(folder), processes=[register]) as host:
        handle = await host.spawn(register, PROCESS_ID, "carol@example.org")
        # Somebody else's process can only be looked at.
        while not ((info := await handle.info()).waits or info.finished_at):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        print(f"   {info.id} is {info.status}")

    print("the program ends; second start")
    async with ProcessHost(FileSystemStorage(folder), processes=[register]) as host:
        handle = host.get(register, PROCESS_ID)
        if (await handle.info()).finished_at is None:
            print("   carol clicks the link")
            await handle.raise_event("confirmed")
        print(f"   result: {await handle.result()}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "state/user_registration")))
