"""What a user or a backend author tests with.

The conformance suite and the state machine live in their own modules
(`durabletask.testing.conformance`, `durabletask.testing.machine`), since only
they need pytest and Hypothesis.
"""

from durabletask.testing._time import VirtualClock, VirtualTimeLoop, run_virtual

__all__ = ["VirtualClock", "VirtualTimeLoop", "run_virtual"]
