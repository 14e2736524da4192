"""Which file system a folder is on, and whether it is one to warn about. Pure but for one read."""

import os

UNSAFE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "afs", "fuse.sshfs"}
)
"""Locks and syncs of these are not what a store needs."""

VOLATILE = frozenset({"tmpfs", "ramfs"})
"""These do not survive a restart of the machine."""

_MOUNTS = "/proc/self/mounts"


def file_system_of(path: str, mounts: str) -> str | None:
    """Return the type of the file system that holds a path, by a text like /proc/mounts.

    None where the text does not tell.
    """
    best, kind = "", None
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Spaces in a path are written in octal.
        point = fields[1].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def warning_for(path: str) -> str | None:
    """Return what to warn about the file system of a path, or None."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as file:
            kind = file_system_of(os.path.realpath(path), file.read())
    except OSError:
        return None
    if kind in UNSAFE or (kind is not None and kind.startswith("fuse.")):
        return f"{path} is on {kind}: locks and syncs there cannot be relied on; use a local disk"
    if kind in VOLATILE:
        return f"{path} is on {kind}: it does not survive a restart of the machine"
    return None
