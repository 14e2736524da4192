"""Frames: one record a line, so that a disk's lies are found and a person can read along.

A frame is eight hex digits of length, eight of CRC-32, a space, JSON, a
newline. The CRC begins with the segment's random salt, the length and the
place of the frame in its file, so that zeros, stale bytes of another file and
a frame at the wrong place never pass for data. Pure: bytes in, bytes out.
"""

from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

HEAD_BYTES = 17
OVERHEAD_BYTES = HEAD_BYTES + 1
PAYLOAD_BYTES_MAX = 0xFFFF_FFFF

_HEX = frozenset(b"0123456789abcdef")
SPREAD = 0x9E3779B1  # the golden ratio in 32 bits: near offsets get seeds that differ in many bits

Bytes = bytes | bytearray | memoryview


class Frame(NamedTuple):
    """An intact frame: where it begins, where the next one does, and what it holds."""

    offset: int
    end: int
    payload: bytes


def checksum(salt: int, offset: int, payload: Bytes) -> int:
    """Return the CRC of a payload at a place of a segment with this salt."""
    return crc32(payload, salt ^ (offset * SPREAD + len(payload)) & 0xFFFF_FFFF)


def encode(salt: int, offset: int, payload: bytes) -> bytes:
    """Return the frame that holds `payload` at `offset`."""
    size = len(payload)
    crc = crc32(payload, salt ^ (offset * SPREAD + size) & 0xFFFF_FFFF)
    return b"%08x%08x %b\n" % (size, crc, payload)


def decode(salt: int, data: Bytes, offset: int, base: int = 0) -> Frame | None:
    """Return the frame at `offset`, or None where there is none that is intact.

    Args:
        salt: The segment's.
        data: A part of the segment.
        offset: Place in the segment.
        base: Where in the segment `data` begins.
    """
    start = offset - base + HEAD_BYTES
    head = bytes(data[start - HEAD_BYTES : start])
    if len(head) < HEAD_BYTES or head[16] != 0x20 or not _HEX.issuperset(head[:16]):
        return None
    size = int(head[:8], 16)
    stop = start + size
    if size == 0 or stop >= len(data) or data[stop] != 0x0A:
        return None
    payload = bytes(data[start:stop])
    if checksum(salt, offset, payload) != int(head[8:16], 16):
        return None
    return Frame(offset, stop + base + 1, payload)


def scan(salt: int, data: Bytes, offset: int) -> Iterator[Frame]:
    """Yield the intact frames that follow one another from `offset` on."""
    while (frame := decode(salt, data, offset)) is not None:
        yield frame
        offset = frame.end


def search(salt: int, data: Bytes, offset: int, mark: bytes) -> Iterator[Frame]:
    """Yield every intact frame behind `offset` whose payload begins with `mark`."""
    raw = bytes(data[offset:])
    place = raw.find(mark)
    while place >= 0:
        if place >= HEAD_BYTES:
            frame = decode(salt, raw, offset + place - HEAD_BYTES, offset)
            if frame is not None:
                yield frame
        place = raw.find(mark, place + 1)
