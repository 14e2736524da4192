"""Filesystem storage: one folder, one host, no dependency."""

from durabletask_filesystem._check import CheckReport, check
from durabletask_filesystem._inspection import Problem
from durabletask_filesystem._repair import RepairReport, repair
from durabletask_filesystem._storage import FileSystemStorage

__all__ = ["CheckReport", "FileSystemStorage", "Problem", "RepairReport", "check", "repair"]
