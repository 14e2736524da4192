"""Frames: one record a line, so that a disk's lies are found and a person can read along.

A frame is eight hex digits of length, eight of CRC-32, a space, JSON, a
newline. The CRC begins with the segment's random salt, the length and the
place of the frame in its file, so that zeros, stale bytes of another file and
a frame at the wrong place never pass for data. Pure: bytes in, bytes out.
"""

import struct
from binascii import hexlify, unhexlify
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from zlib import crc32

HEAD_BYTES = 17
OVERHEAD_BYTES = HEAD_BYTES + 1
PAYLOAD_BYTES_MAX = 0xFFFF_FFFF

_HEAD = struct.Struct(">II")
_SPACE, _NEWLINE = b" \n"
_SPREAD = 0x9E3779B1  # the golden ratio in 32 bits: near offsets get seeds that differ in many bits

Bytes = bytes | bytearray | memoryview


class Frame(NamedTuple):
    """An intact frame: where it begins, where the next one does, and what it holds."""

    offset: int
    end: int
    payload: bytes


def checksum(salt: int, offset: int, payload: bytes) -> int:
    """Return the CRC of a payload at a place of a segment with this salt."""
    return crc32(payload, salt ^ (offset * _SPREAD + len(payload)) & 0xFFFF_FFFF)


def encode(salt: int, offset: int, payload: bytes) -> bytes:
    """Return the frame that holds `payload` at `offset`."""
    return encode_all(salt, offset, [payload])


def encode_all(salt: int, offset: int, payloads: Iterable[bytes]) -> bytes:
    """Return the frames that hold `payloads`, one after the other, the first at `offset`."""
    # `checksum` in place, and eight hex digits by the way that is quickest: this is in the
    # storage's hot path.
    pack = _HEAD.pack
    parts: list[bytes] = []
    add = parts.append
    for payload in payloads:
        size = len(payload)
        crc = crc32(payload, salt ^ (offset * _SPREAD + size) & 0xFFFF_FFFF)
        add(b"%b %b\n" % (hexlify(pack(size, crc)), payload))
        offset += size + OVERHEAD_BYTES
    return b"".join(parts)


def decode(salt: int, data: Bytes, offset: int, base: int = 0) -> Frame | None:
    """Return the frame at `offset`, or None where there is none that is intact.

    Args:
        salt: The segment's.
        data: A part of the segment.
        offset: Place in the segment.
        base: Where in the segment `data` begins.
    """
    start = offset - base + HEAD_BYTES
    try:
        size, crc = _HEAD.unpack(unhexlify(data[start - HEAD_BYTES : start - 1]))
    except (ValueError, struct.error):  # no hex digits, or not enough of them
        return None
    stop = start + size
    if size == 0 or stop >= len(data) or data[stop] != _NEWLINE or data[start - 1] != _SPACE:
        return None
    payload = bytes(data[start:stop])
    if checksum(salt, offset, payload) != crc:
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
