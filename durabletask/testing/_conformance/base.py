"""What a backend tells the conformance suite about itself, and how a test gets its storage."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar

from durabletask.storage import Lease, ProcessStorage
from durabletask.testing._conformance.world import User, World, applies
from durabletask.testing._time import VirtualClock


class ConformanceBase:
    """The part of the suite that a backend fills in.

    Attributes:
        hosts_max: How many hosts may have a lease at a time; None for any
            number. Tests that need more are no promises of this storage.
    """

    hosts_max: ClassVar[int | None] = None

    async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        """Return a new, empty storage whose time is this clock."""
        raise NotImplementedError

    async def reopen(self, storage: ProcessStorage, *, crash: bool = False) -> ProcessStorage:
        """Return a new object over the data of `storage`.

        Args:
            storage: As `open_storage` or an earlier `reopen` gave it.
            crash: It was abandoned as by kill -9; otherwise close it first.
        """
        raise NotImplementedError

    def holding(
        self, storage: ProcessStorage, process_id: str
    ) -> AbstractAsyncContextManager[None]:
        """Let another open transaction hold a process meanwhile, and change nothing in the end.

        Whether or not it exists yet. For storages that can be so held; the
        others never answer BUSY and leave this as it is.
        """
        raise NotImplementedError

    def user(self, storage: ProcessStorage) -> User:
        """Return the user's side of the database; for storages with `Transactions`."""
        raise NotImplementedError

    async def kill(self, world: World, lease: Lease) -> None:
        """Make the host of a lease dead, so that the next host's claim takes over.

        Lets the lease end, or crashes a storage whose leases have no end.
        """
        if lease.ttl_s is None:
            world.storage = await self.reopen(world.storage, crash=True)
        else:
            world.clock.advance(lease.ttl_s + 0.001)

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        """Open a storage for one test, and close it."""
        clock = VirtualClock()
        world = World(self, await self.open_storage(clock), clock)
        try:
            yield world
        finally:
            await world.storage.close()

    def __init_subclass__(cls, **rest: Any) -> None:
        """Leave out the tests that are no promises of this storage."""
        super().__init_subclass__(**rest)
        if cls.open_storage is ConformanceBase.open_storage:
            return  # a part of the suite and no backend; what it left out nobody would run
        filled_in = {
            name
            for name in ("reopen", "holding", "user")
            if getattr(cls, name) is not getattr(ConformanceBase, name)
        }
        for name in [name for name in dir(cls) if name.startswith("test_")]:
            # What a class above has left out may be a promise of this one.
            test = next(vars(each)[name] for each in cls.__mro__ if vars(each).get(name))
            setattr(cls, name, test if applies(test, cls.hosts_max, filled_in) else None)
