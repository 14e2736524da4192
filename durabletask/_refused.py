"""What a caller is told when a storage refuses, or cannot do what it is asked."""

from durabletask._errors import (
    InvalidArgumentError,
    MailboxFullError,
    ProcessBusyError,
    ProcessError,
    ProcessExistsError,
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


def busy(process_id: str) -> ProcessBusyError:
    """Return what tells that a process could not be written; nothing was."""
    return ProcessBusyError(
        f"process {process_id!r} cannot be written now: another open transaction is creating "
        "or holding it, or what is stored of it cannot be read; nothing was written",
        hint="end that transaction, and try again",
    )


def raise_busy(process_id: str, answer: Created | Delivered) -> None:
    """Raise if a process was busy.

    Raises:
        ProcessBusyError: It was; nothing was written.
    """
    if answer.refused is Refusal.BUSY:
        raise busy(process_id)


def raise_refused(answer: Delivered, event: NewEvent, mailbox_max: int) -> None:
    """Raise what tells why an event was not stored, if it was not."""
    if answer.refused is not None:
        raise why_not(answer.refused, event.process_id, mailbox_max)


def why_not(refused: Refusal, process_id: str, mailbox_max: int) -> ProcessError:
    """Return what tells why another process could not be spawned or sent an event."""
    match refused:
        case Refusal.UNKNOWN_PROCESS:
            return unknown(process_id)
        case Refusal.OTHER_ORIGIN:
            return ProcessExistsError(
                process_id,
                f"process {process_id!r} exists already, and this call has not spawned it",
                hint="leave process_id= out, or make it one that nothing else can have",
            )
        case Refusal.MAILBOX_FULL:
            return MailboxFullError(
                process_id,
                f"process {process_id!r} has {mailbox_max:,} unconsumed events",
                hint="let it consume them, or raise Limits(mailbox_max=)",
            )
        case _:
            return ProcessFinishedError(
                process_id,
                f"process {process_id!r} has ended and takes no more events",
                hint="one that failed takes them again after its retry; else spawn another process",
            )
