"""Waking up when a letter arrives, without looking all the time.

Linux tells through inotify, by a descriptor that an event loop can wait for.
Where there is none, whoever watches has to poll.
"""

import ctypes
import os

_IN_MOVED_TO = 0x80


def watch_moves(path: str) -> int | None:
    """Return a descriptor that becomes readable when a file is renamed into a folder.

    None where the system has nothing of the kind. The caller closes it.
    """
    try:
        system = ctypes.CDLL(None, use_errno=True)
        fd: int = system.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except (AttributeError, OSError):
        return None
    if fd < 0:
        return None
    if system.inotify_add_watch(fd, os.fsencode(path), _IN_MOVED_TO) < 0:
        os.close(fd)
        return None
    return fd


def drain(fd: int) -> None:
    """Read away what a descriptor of `watch_moves` has told."""
    try:
        while os.read(fd, 65_536):
            pass
    except BlockingIOError:
        pass
