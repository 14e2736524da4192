"""What a caller is told when a storage refuses, or cannot do what it is asked."""

from durabletask._errors import (
    InvalidArgumentError,
    MailboxFullError,
    ProcessBusyError,
    ProcessFinishedError,
)
from durabletask._model import Created, Delivered, NewEvent, Refusal
from durabletask._storage import Transactions
from durabletask._watch import unknown


def transactions_of(storage: object) -> Transactions:
    """Return a storage that can write in the transactions of its users.

    Raises:
        InvalidArgumentError: This one cannot.
    """
    if isinstance(storage, Transactions):
        return storage
    raise InvalidArgumentError(
        f"{type(storage).__name__} has no transactions that are yours as well; nothing was written",
        hint="without connection=, and with proc.do; or with PostgresStorage",
    )


def raise_busy(process_id: str, answer: Created | Delivered) -> None:
    """Raise if a process was busy.

    Raises:
        ProcessBusyError: It was; nothing was written.
    """
    if answer.refused is Refusal.BUSY:
        raise ProcessBusyError(
            f"process {process_id!r} cannot be written now: another open transaction is creating "
            "or holding it, or what is stored of it cannot be read; nothing was written",
            hint="end that transaction, and try again",
        )


def raise_refused(answer: Delivered, event: NewEvent, mailbox_max: int) -> None:
    """Raise what tells why an event was not stored, if it was not."""
    process_id = event.process_id
    match answer.refused:
        case None:
            return
        case Refusal.UNKNOWN_PROCESS:
            raise unknown(process_id)
        case Refusal.MAILBOX_FULL:
            raise MailboxFullError(
                process_id,
                f"process {process_id!r} has {mailbox_max:,} unconsumed events",
                hint="let it consume them, or raise Limits(mailbox_max=)",
            )
        case _:
            raise ProcessFinishedError(
                process_id,
                f"event {event.name!r} came too late: process {process_id!r} has ended",
            )
