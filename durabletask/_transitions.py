"""Which status may follow which. Data; everything else looks it up."""

from durabletask._model import Status

FINISHED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TERMINATED})
"""Nothing is recorded after these, no event is taken; only `retry()` reopens FAILED."""

CLAIMABLE = frozenset({Status.RUNNING, Status.WAITING, Status.COMPENSATING})
"""A host may take a process in one of these."""

_ENDINGS = FINISHED | {Status.QUARANTINED}

NEXT: dict[Status, frozenset[Status]] = {
    Status.RUNNING: _ENDINGS | {Status.WAITING, Status.SUSPENDED, Status.COMPENSATING},
    Status.WAITING: _ENDINGS | {Status.RUNNING, Status.SUSPENDED, Status.COMPENSATING},
    # By request only: what its host still records of a suspended process changes what will be
    # resumed, and not that it is suspended.
    Status.SUSPENDED: frozenset(
        {
            Status.RUNNING,
            Status.WAITING,
            Status.COMPENSATING,
            Status.CANCELLED,
            Status.TERMINATED,
        }
    ),
    # Once compensation has begun the process can no longer complete.
    Status.COMPENSATING: frozenset(
        {
            Status.SUSPENDED,
            Status.FAILED,
            Status.CANCELLED,
            Status.TERMINATED,
            Status.QUARANTINED,
        }
    ),
    Status.FAILED: frozenset({Status.RUNNING, Status.COMPENSATING}),
    Status.QUARANTINED: frozenset(
        {
            Status.RUNNING,
            Status.WAITING,
            Status.COMPENSATING,
            Status.CANCELLED,
            Status.TERMINATED,
        }
    ),
    Status.COMPLETED: frozenset(),
    Status.CANCELLED: frozenset(),
    Status.TERMINATED: frozenset(),
}


def may_follow(before: Status, after: Status) -> bool:
    """Return whether a process in `before` may be recorded as `after`; staying is legal if live."""
    return after in NEXT[before] or (before is after and bool(NEXT[before]))
