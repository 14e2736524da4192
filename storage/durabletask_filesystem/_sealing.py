"""Sealing: the moment a segment stops growing, its index is made from the table."""

from copy import copy
from typing import NamedTuple

from durabletask_filesystem._index import Head, build
from durabletask_filesystem._log import Log, Segment
from durabletask_filesystem._state import Proc
from durabletask_filesystem._table import Table


def seal(log: Log, table: Table, segment: Segment) -> None:
    """Write the index of a segment that was just sealed, and forget what only it had to know.

    The table must stand as it did at the segment's end. An index that cannot
    be written is served from memory, and made again by the next opening.
    """
    log.write_index(segment, index_of(Standing(table, log.batch), segment))
    table.begin_segment()


class Standing(NamedTuple):
    """The state at a segment's end, with the number of the last batch."""

    table: Table
    batch: int


def index_of(standing: Standing, segment: Segment) -> bytes:
    """Return the bytes of the index of the segment that the table's last records are in."""
    table, batch = standing
    number = segment.number
    head = Head(
        segment=number,
        salt=segment.salt,
        bytes=segment.end,
        batch=batch,
        latest=table.latest,
        hosts=table.hosts,
        ended=table.ended,
        damage=table.damage,
        dead=table.dead,
        touched=0,
        births=0,
        held=table.held,
    )
    live = [_to_store(proc) for proc in table.live(number)]
    return build(head, table.spots(number), table.births, live)


def _to_store(proc: Proc) -> Proc:
    """Return a copy without what is true only in this program's memory."""
    stored = copy(proc)
    stored.spot = 0
    stored.keys = stored.mail = None
    return stored
