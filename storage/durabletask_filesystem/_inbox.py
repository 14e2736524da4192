"""Letters: how a program asks the one that holds the folder, through files.

A request is written beside, renamed into `inbox/` and so there as a whole or
not at all; the reply comes the same way under the same name. Nothing here is
durable on its own: a reply is written when what it says is durable in the
store, and a letter that a crash swallows was never answered.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

import durabletask.errors as errors
import durabletask_filesystem._frames as _frames
from durabletask.errors import DurableTaskError, StorageError
from durabletask.storage import Controlled, Created, Delivered, Page, Refusal, Snapshot
from durabletask_filesystem._files import Folder
from durabletask_filesystem._requests import (
    Answer,
    Ask,
    Create,
    Deliver,
    ListPage,
    Purge,
    Read,
    Request,
)

FOLDER = "inbox"
REQUEST = ".req"
REPLY = ".rep"
DRAFT = ".tmp"

REPLIES_KEPT = 256
"""Replies that nobody fetched; older ones are removed."""

LATE = timedelta(seconds=1)

ClientRequest = Ask | Create | Deliver | Read | ListPage | Purge

_ANSWERS: dict[type, Any] = {
    Ask: tuple[Controlled, ...],
    Create: tuple[Created, ...],
    Deliver: tuple[Delivered, ...],
    Read: tuple[Snapshot | None, ...],
    ListPage: Page,
    Purge: tuple[Refusal | None, ...],
}

_ERRORS: dict[str, type[DurableTaskError]] = {
    name: each
    for name in errors.__all__
    if isinstance(each := getattr(errors, name), type)
    and issubclass(each, StorageError | errors.InvalidIdError | errors.InvalidArgumentError)
}


class _Letter(msgspec.Struct, frozen=True):
    """A request, of no use to its sender after `until`."""

    request: ClientRequest
    until: datetime


class _Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    answer: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    message: str = ""


_letters: msgspec.json.Decoder[_Letter] = msgspec.json.Decoder(_Letter)
_replies: msgspec.json.Decoder[_Reply] = msgspec.json.Decoder(_Reply)


class Letter(NamedTuple):
    """A request found in the inbox, and where its reply goes."""

    name: str
    request: Request


# --- the program that asks ------------------------------------------------------------------


def send(folder: Folder, name: str, request: ClientRequest, until: datetime) -> None:
    """Put a request into the inbox.

    Raises:
        OSError: It is not there.
    """
    _put(folder, name, REQUEST, msgspec.json.encode(_Letter(request, until)))


def fetch(folder: Folder, name: str, request: ClientRequest) -> Answer:
    """Return the reply to a request, and remove it.

    Raises:
        FileNotFoundError: There is none yet.
        DurableTaskError: The request was refused.
        StorageUnknownError: The reply cannot be read.
    """
    path = f"{FOLDER}/{name}{REPLY}"
    frame = _frames.decode(0, folder.read(path), 0)
    with suppress(OSError):
        folder.remove(path)
    if frame is None:
        raise errors.StorageUnknownError(f"the reply {path} is broken; repeat the call")
    try:
        reply = _replies.decode(frame.payload)
        if reply.error:
            raise _ERRORS.get(reply.error, StorageError)(reply.message)
        answer: Answer = msgspec.json.decode(reply.answer, type=_ANSWERS[type(request)])
    except msgspec.DecodeError as error:
        raise errors.StorageUnknownError(
            f"the reply {path} cannot be understood: {error}",
            hint="let the program that holds the folder have the same version of the library",
        ) from error
    return answer


def withdraw(folder: Folder, name: str) -> None:
    """Take a request back, if nobody has fetched it."""
    for ending in (REQUEST, DRAFT, REPLY):
        with suppress(OSError):
            folder.remove(f"{FOLDER}/{name}{ending}")


# --- the program that holds the folder ------------------------------------------------------


class Inbox:
    """The letters of others, for the program that holds the folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._replied: dict[str, None] = {}

    def clean(self) -> None:
        """Remove replies and drafts of earlier times."""
        for name in self._names():
            if name.endswith((REPLY, DRAFT)):
                with suppress(OSError):
                    self._folder.remove(f"{FOLDER}/{name}")

    def _names(self) -> Sequence[str]:
        try:
            return self._folder.names(FOLDER)
        except OSError:
            return ()  # whoever removed it cannot send letters either

    def letters(self, now: datetime) -> list[Letter]:
        """Return the requests that wait, each sender's in order.

        What cannot be read, or is of no use to its sender any more, is removed.
        """
        found = []
        for file in self._names():
            if not file.endswith(REQUEST):
                continue
            name = file.removesuffix(REQUEST)
            try:
                frame = _frames.decode(0, self._folder.read(f"{FOLDER}/{file}"), 0)
                letter = _letters.decode(frame.payload if frame else b"")
            except (msgspec.DecodeError, OSError):
                withdraw(self._folder, name)
                continue
            if letter.until + LATE < now:
                withdraw(self._folder, name)
            else:
                found.append(Letter(name, letter.request))
        return found

    def reply(self, letters: Sequence[Letter], answers: Sequence[Answer]) -> None:
        """Answer requests; what the answers say must be durable by now."""
        for letter, answer in zip(letters, answers, strict=True):
            if isinstance(answer, DurableTaskError):
                reply = _Reply(error=type(answer).__name__, message=str(answer))
            else:
                reply = _Reply(answer=msgspec.Raw(msgspec.json.encode(answer)))
            with suppress(OSError):
                _put(self._folder, letter.name, REPLY, msgspec.json.encode(reply))
            # Only now: a crash in between leaves the request for the next host.
            with suppress(OSError):
                self._folder.remove(f"{FOLDER}/{letter.name}{REQUEST}")
            self._replied[letter.name] = None
        while len(self._replied) > REPLIES_KEPT:
            name = next(iter(self._replied))
            del self._replied[name]
            with suppress(OSError):
                self._folder.remove(f"{FOLDER}/{name}{REPLY}")


def _put(folder: Folder, name: str, ending: str, payload: bytes) -> None:
    draft = f"{FOLDER}/{name}{DRAFT}"
    file = folder.create(draft)
    try:
        file.append(_frames.encode(0, 0, payload))
    finally:
        file.close()
    folder.rename(draft, f"{FOLDER}/{name}{ending}")
