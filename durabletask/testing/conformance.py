"""The conformance suite: every promise of the storage seam as a test.

A backend joins by a subclass of a few lines in its own tests:

    class TestMine(StorageConformance):
        async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
            return MyStorage(clock=clock)

A storage whose data survives its object also says how it is opened again
(`reopen`), one that takes a single host says so (`hosts_max = 1`), and one that
somebody else's transaction can lock says how (`holding`); one with `Transactions`
shows the user's side of its database (`user`). The
tests are plain `async def test_…` methods; they run under pytest with
pytest-asyncio in auto mode, or anything else that awaits test methods.
"""

import pytest

# Before the modules below are imported: a failure then shows the values that were compared.
pytest.register_assert_rewrite("durabletask.testing._conformance")

from durabletask.testing._conformance.busy import BusyConformance  # noqa: E402
from durabletask.testing._conformance.child_ends import ChildEndConformance  # noqa: E402
from durabletask.testing._conformance.children import ChildConformance  # noqa: E402
from durabletask.testing._conformance.claims import ClaimConformance  # noqa: E402
from durabletask.testing._conformance.commit import CommitConformance  # noqa: E402
from durabletask.testing._conformance.create import CreationConformance  # noqa: E402
from durabletask.testing._conformance.descendants import DescendantConformance  # noqa: E402
from durabletask.testing._conformance.events import EventConformance  # noqa: E402
from durabletask.testing._conformance.leases import LeaseConformance  # noqa: E402
from durabletask.testing._conformance.lists import ListConformance  # noqa: E402
from durabletask.testing._conformance.reopen import ReopenConformance  # noqa: E402
from durabletask.testing._conformance.request_table import RequestTableConformance  # noqa: E402
from durabletask.testing._conformance.requests import RequestConformance  # noqa: E402
from durabletask.testing._conformance.restart import RestartConformance  # noqa: E402
from durabletask.testing._conformance.retry import RetryConformance  # noqa: E402
from durabletask.testing._conformance.rooms import RoomConformance  # noqa: E402
from durabletask.testing._conformance.sends import SendConformance  # noqa: E402
from durabletask.testing._conformance.status import StatusConformance  # noqa: E402
from durabletask.testing._conformance.suspending import SuspensionConformance  # noqa: E402
from durabletask.testing._conformance.transactions import TransactionConformance  # noqa: E402
from durabletask.testing._conformance.values import ValueConformance  # noqa: E402

__all__ = ["StorageConformance"]


class StorageConformance(
    CreationConformance,
    CommitConformance,
    StatusConformance,
    RequestConformance,
    RequestTableConformance,
    SuspensionConformance,
    RetryConformance,
    RestartConformance,
    ChildConformance,
    ChildEndConformance,
    DescendantConformance,
    SendConformance,
    EventConformance,
    ClaimConformance,
    RoomConformance,
    LeaseConformance,
    ListConformance,
    ValueConformance,
    ReopenConformance,
    BusyConformance,
    TransactionConformance,
):
    """Every promise of the seam; override `open_storage`, and `reopen` where data stays."""
