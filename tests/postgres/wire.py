"""Messages of the Postgres protocol: where one ends, what kind it is, which statement it means.

Pure: bytes in, messages out. Knows the few kinds that a proxy and a pooler
have to tell apart; refuses to know the rest.

Source: Postgres manual, "Frontend/Backend Protocol", message formats.
"""

import struct
from enum import StrEnum
from typing import NamedTuple

CANCEL = 80877102
SSL = 80877103
GSS = 80877104

_HEAD = struct.Struct("!I")


class Side(StrEnum):
    """Who has sent a message."""

    CLIENT = "client"
    SERVER = "server"


class Message(NamedTuple):
    """One message as it was on the wire.

    Attributes:
        kind: Its letter; a first message of a client has none.
        raw: All of it, with letter and length.
    """

    kind: str
    raw: bytes

    @property
    def body(self) -> bytes:
        """What follows the length."""
        return self.raw[5:] if self.kind else self.raw[4:]

    @property
    def code(self) -> int:
        """The number that a first message begins with: a protocol version, or one of ours."""
        return int(_HEAD.unpack_from(self.body)[0])

    @property
    def parameters(self) -> dict[str, str]:
        """What a first message asks for: user, database, settings."""
        texts = [part.decode() for part in self.body[4:].split(b"\0")]
        return {name: value for name, value in zip(texts[::2], texts[1::2], strict=False) if name}


class Splitter:
    """Cuts a stream behind its first message into messages; what is not complete waits."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that these bytes complete, in order."""
        self._rest += data
        found, start = [], 0
        while len(self._rest) >= start + 5:
            end = start + 1 + int(_HEAD.unpack_from(self._rest, start + 1)[0])
            if len(self._rest) < end:
                break
            found.append(Message(chr(self._rest[start]), bytes(self._rest[start:end])))
            start = end
        del self._rest[:start]
        return found


class Statements:
    """What a client has prepared and bound on one connection: names to SQL text."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}

    def of(self, message: Message) -> str | None:
        """Return the SQL text that a client's message prepares, binds, runs; None for others."""
        match message.kind:
            case "Q":
                return _text(message.body)
            case "P":
                name, _, rest = message.body.partition(b"\0")
                self._prepared[name] = _text(rest)
                return self._prepared[name]
            case "B":
                portal, name = message.body.split(b"\0", 2)[:2]
                self._portals[portal] = self._prepared.get(name, "")
                return self._portals[portal]
            case "E":
                return self._portals.get(message.body.partition(b"\0")[0])
            case _:
                return None


def message(kind: str, body: bytes) -> bytes:
    """Return a message with a letter, ready to be sent."""
    return kind.encode() + _HEAD.pack(len(body) + 4) + body


def error(sqlstate: str, text: str, *, severity: str = "FATAL") -> bytes:
    """Return an error message of a server."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text}
    return message(
        "E", b"".join(f"{key}{value}\0".encode() for key, value in fields.items()) + b"\0"
    )


def key_of(number: int) -> bytes:
    """Return a cancellation key of eight bytes that stands for a number."""
    return (number % 2**63).to_bytes(8, "big")


def _text(body: bytes) -> str:
    return body.partition(b"\0")[0].decode(errors="replace")
