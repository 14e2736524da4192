"""The index of a sealed segment: what opening and looking up need, without reading the segment.

For every process that the segment touches, a hash of its id with the offsets
of its last record and of its creation there; when and where processes were
created, in order; and the state of those that had not finished when the
segment was sealed. Derived data: one that is missing, torn or damaged is made
again from the segment.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from operator import attrgetter
from zlib import crc32

import msgspec

from durabletask_filesystem._files import Buffer
from durabletask_filesystem._state import BORN_SHIFT, OFFSET_MASK, Proc

MAGIC = b"DTINDEX1"
_PREFIX_BYTES = len(MAGIC) + 8  # magic, CRC of all that follows, length of the head


class Head(msgspec.Struct, frozen=True):
    """What the index is of, and the store's state at the moment of sealing.

    Attributes:
        bytes: Length of the segment that this covers.
        batch: Number of the last batch.
        latest: Time of the last record.
        hosts: Labels of the hosts whose lease was open, by identity.
        ended: Identities of those whose lease had ended.
        damage: What is wrong with a process, by id; of the whole store.
        dead: Bytes known to be of no use any more, by number of segment; of the whole store.
        held: Owners of the processes that had ended without them, by id.
        touched: How many processes have an entry.
        births: How many creations there are.
    """

    segment: int
    salt: int
    bytes: int
    batch: int
    latest: datetime
    hosts: dict[str, str]
    ended: set[str]
    damage: dict[str, str]
    dead: dict[int, int]
    touched: int
    births: int
    held: dict[str, str] = {}


_encode_live = msgspec.msgpack.Encoder().encode
_decode_live = msgspec.msgpack.Decoder(list[Proc]).decode
_decode_head = msgspec.json.Decoder(Head).decode


def id_hash(process_id: str) -> int:
    """Return the hash under which an id is found; the same in every program."""
    return int.from_bytes(blake2b(process_id.encode(), digest_size=8).digest(), "little")


def build(
    head: Head,
    spots: Iterable[tuple[str, int]],
    births: tuple["array[int]", "array[int]"],
    live: Sequence[Proc],
) -> bytes:
    """Return the bytes of an index.

    Args:
        head: Everything but the counts.
        spots: Id and spot (see `Proc.spot`) of each process that the segment touches.
        births: Microseconds since 1970 and offset of each creation, in order.
        live: Of the touched, those that have not finished.
    """
    rows = sorted((id_hash(process_id), spot) for process_id, spot in spots)
    body = b"".join(
        (
            array("Q", [row[0] for row in rows]).tobytes(),
            births[0].tobytes(),
            array("I", [row[1] & OFFSET_MASK for row in rows]).tobytes(),
            array("I", [row[1] >> BORN_SHIFT & OFFSET_MASK for row in rows]).tobytes(),
            births[1].tobytes(),
            # In one order, so that the same state is the same bytes.
            _encode_live(sorted(live, key=attrgetter("id"))),
        )
    )
    head = msgspec.structs.replace(head, touched=len(rows), births=len(births[0]))
    text = msgspec.json.encode(head)
    rest = len(text).to_bytes(4, "little") + text + body
    return MAGIC + crc32(rest).to_bytes(4, "little") + rest


class Index:
    """An index, mapped."""

    __slots__ = ("_born", "_hashes", "_last", "_live", "birth_offsets", "birth_times", "head")

    def __init__(self, data: Buffer) -> None:
        """Read an index.

        Raises:
            ValueError: It is torn or damaged.
        """
        view = memoryview(data)
        if bytes(view[:8]) != MAGIC:
            raise ValueError("no index")
        if crc32(view[12:]) != int.from_bytes(view[8:12], "little"):
            raise ValueError("the checksum of the index is wrong")
        place = _PREFIX_BYTES + int.from_bytes(view[12:16], "little")
        self.head = _decode_head(view[_PREFIX_BYTES:place])
        parts = []
        count, births = self.head.touched, self.head.births
        for size in (8 * count, 8 * births, 4 * count, 4 * count, 4 * births):
            end = place + size
            parts.append(view[place:end])
            place = end
        self._hashes = parts[0].cast("Q")
        self.birth_times = parts[1].cast("q")
        self._last = parts[2].cast("I")
        self._born = parts[3].cast("I")
        self.birth_offsets = parts[4].cast("I")
        self._live = view[place:]

    def live(self) -> list[Proc]:
        """Return the state of the touched processes that had not finished."""
        return _decode_live(self._live)

    def entries(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Return all records that can be looked up, to be compared with another index."""
        records = zip(self._hashes, self._last, self._born, strict=True)
        births = zip(self.birth_times, self.birth_offsets, strict=True)
        return [each for each in records if each[1]], list(births)

    def find(self, wanted: int) -> list[tuple[int, int]]:
        """Return (last offset, creation offset or 0) for each entry of a hash; nearly always one.

        A last offset of 0 says that the process was touched here but has no
        record of its own.
        """
        hashes = self._hashes
        place = bisect_left(hashes, wanted)
        found = []
        while place < len(hashes) and hashes[place] == wanted:
            found.append((self._last[place], self._born[place]))
            place += 1
        return found
