"""Filesystem storage: one folder, one host, no dependency."""

from durabletask_filesystem._storage import FileSystemStorage

__all__ = ["FileSystemStorage"]
