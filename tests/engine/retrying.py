"""What tests of `retry` share: steps that fail while they are told to, and looks at the rest."""

from typing import Any

import pytest

from durabletask import ProcessHandle
from durabletask.errors import ProcessFailedError


class Steps:
    """Steps that fail while they are told to, and count their runs."""

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.ran: list[str] = []

    async def step(self, name: str) -> str:
        self.ran.append(name)
        if name in self.broken:
            raise ValueError(f"{name} is broken")
        return name


async def failed(handle: ProcessHandle[Any], match: str = "broken") -> None:
    """Wait until a process has failed."""
    with pytest.raises(ProcessFailedError, match=match):
        await handle.result()


async def forgotten(handle: ProcessHandle[Any]) -> list[tuple[str, str]]:
    """Return (kind, key) of what the history shows as put aside."""
    return [(each.kind, each.key) for each in await handle.history() if each.forgotten]
