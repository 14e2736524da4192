"""Durable execution as a library: a long business process is one async function."""

from durabletask._client import ProcessClient
from durabletask._clock import Clock, SystemClock
from durabletask._durable_call import DurableCall, DurableWait
from durabletask._handle import ProcessHandle
from durabletask._host import ProcessHost
from durabletask._info import (
    CompensationInfo,
    HistoryEntry,
    ProcessInfo,
    ProcessPage,
    WaitInfo,
)
from durabletask._limits import Limits
from durabletask._memory import MemoryStorage
from durabletask._model import Status
from durabletask._observe import Observer, ProcessChange, StepChange
from durabletask._process import Process
from durabletask._process_waits import DelayResult, EventStream
from durabletask._race import RaceResult
from durabletask._retry import RetryPolicy
from durabletask._steps import Step, current_step
from durabletask._variable import Var

__all__ = [
    "Clock",
    "CompensationInfo",
    "DelayResult",
    "DurableCall",
    "DurableWait",
    "EventStream",
    "HistoryEntry",
    "Limits",
    "MemoryStorage",
    "Observer",
    "Process",
    "ProcessChange",
    "ProcessClient",
    "ProcessHandle",
    "ProcessHost",
    "ProcessInfo",
    "ProcessPage",
    "RaceResult",
    "RetryPolicy",
    "Status",
    "Step",
    "StepChange",
    "SystemClock",
    "Var",
    "WaitInfo",
    "current_step",
]
