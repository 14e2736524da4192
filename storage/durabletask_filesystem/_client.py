"""Asking the program that holds the folder, and waiting for its reply.

Blocks, and so runs on the storage's worker thread. No reply in time means
that the outcome is unknown; to repeat the call is harmless.
"""

import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import count
from time import sleep

import durabletask_filesystem._inbox as _inbox
from durabletask.errors import (
    DurableTaskError,
    StorageError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask_filesystem._files import Folder
from durabletask_filesystem._inbox import ClientRequest
from durabletask_filesystem._requests import Answer, lone_surrogate

POLL_MIN_S = 0.001
POLL_MAX_S = 0.02
LOOK_S = 0.25
"""How often to look whether the folder has become free."""


class Client:
    """One sender of letters; its calls are answered in the order in which it makes them."""

    def __init__(self, folder: Folder, timeout_s: float) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._name = os.urandom(8).hex()
        self._numbers = count(1)

    def ask(
        self, requests: Sequence[ClientRequest], now: datetime, freed: Callable[[], bool]
    ) -> list[Answer] | None:
        """Return the answers of the program that holds the folder, in the same order.

        Args:
            requests: Sent at once.
            now: The storage's time; a letter is of no use a timeout later.
            freed: Whether this program holds the folder by now. Then the
                letters are taken back and the answer is None.

        What the folder refuses, once it is free or before, is an answer too:
        "unavailable" to a letter that was not sent, "unknown" to one that may
        have been read.
        """
        until = now + timedelta(seconds=self._timeout_s)
        names = {f"{self._name}-{next(self._numbers):08d}": request for request in requests}
        answers: dict[str, Answer] = {}
        sent: set[str] = set()
        trouble: Exception | None = None
        try:
            for name, request in names.items():
                try:
                    _inbox.send(self._folder, name, request, until)
                    sent.add(name)
                except UnicodeEncodeError as error:
                    answers[name] = lone_surrogate(error)
            if self._wait(names, answers, freed):
                return None
        except (OSError, StorageError) as error:
            trouble = error
        finally:
            for name in names.keys() - answers.keys():
                _inbox.withdraw(self._folder, name)
        return [
            answers[name] if name in answers else self._unanswered(name in sent, trouble)
            for name in names
        ]

    def _wait(
        self,
        names: dict[str, ClientRequest],
        answers: dict[str, Answer],
        freed: Callable[[], bool],
    ) -> bool:
        """Fill in the answers as they come; return whether the folder was freed instead."""
        waited_s = looked_s = 0.0
        poll_s = POLL_MIN_S
        while waited_s < self._timeout_s:
            sleep(poll_s)
            waited_s += poll_s
            poll_s = min(2 * poll_s, POLL_MAX_S)
            for name in names.keys() - answers.keys():
                try:
                    answers[name] = _inbox.fetch(self._folder, name, names[name])
                except FileNotFoundError:
                    continue
                except DurableTaskError as error:
                    answers[name] = error
            if len(answers) == len(names):
                return False
            if waited_s - looked_s >= LOOK_S:
                looked_s = waited_s
                if not answers and freed():
                    return True
        return False

    def _unanswered(self, is_sent: bool, trouble: Exception | None) -> StorageError:
        if not is_sent:
            return StorageUnavailableError(f"the inbox cannot be used: {trouble}")
        text = f"the program that holds the folder did not reply within {self._timeout_s:g} s"
        if trouble is not None:
            text = f"the folder cannot be used any more: {trouble}"
        return StorageUnknownError(text, hint="repeat the same call; that is harmless")
