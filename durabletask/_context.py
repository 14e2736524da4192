"""Context variables that travel with a process: to other hosts, through resumes, to its children.

Captured where the process is spawned, set where it runs. Only those named by
the host; knows nothing of what they hold.
"""

from collections.abc import Iterable
from contextvars import Context, ContextVar, copy_context
from typing import Any

import msgspec

from durabletask._codec import Codec
from durabletask._errors import DecodeError, InvalidArgumentError, SerializationError, about

_UNSET = object()


class Travelling:
    """The context variables of one host or client that travel.

    Args:
        variables: Each with a name of its own, under which its value is
            stored; a value is what may stand in an argument without an annotation.
        codec: For the values.

    Raises:
        InvalidArgumentError: Two of one name, or one that is no ContextVar.
    """

    def __init__(self, variables: Iterable[ContextVar[Any]], codec: Codec) -> None:
        self._variables: dict[str, ContextVar[Any]] = {}
        self._shape = codec.shape()
        for variable in variables:
            if not isinstance(variable, ContextVar):
                raise InvalidArgumentError(f"context= takes ContextVars, not {variable!r}")
            if self._variables.setdefault(variable.name, variable) is not variable:
                raise InvalidArgumentError(
                    f"context= has two variables named {variable.name!r}",
                    hint="a value is stored under the name of its variable: rename one",
                )

    def capture(self) -> bytes | None:
        """Return the values that are set here, encoded; None if none is.

        Raises:
            SerializationError: One has no exact JSON form.
        """
        if not self._variables:
            return None
        values: dict[str, msgspec.Raw] = {}
        for name, variable in self._variables.items():
            value = variable.get(_UNSET)
            if value is not _UNSET:
                try:
                    values[name] = msgspec.Raw(self._shape.encode(value, name))
                except SerializationError as error:
                    raise about(f"context variable {name!r}", error) from error
        return msgspec.json.encode(values) if values else None

    def restore(self, stored: bytes | None) -> Context | None:
        """Return the context for a run, or None where nothing travels: then any will do.

        What was not set where the process was spawned is not set in it; what
        this host does not name stays behind.

        Raises:
            DecodeError: A value does not fit any more.
        """
        if not self._variables:
            return None
        context = Context()
        named = set(self._variables.values())
        for variable, value in copy_context().items():
            if variable not in named:
                context.run(variable.set, value)
        raws = {} if stored is None else msgspec.json.decode(stored, type=dict[str, msgspec.Raw])
        for name, raw in raws.items():
            held_by = self._variables.get(name)
            if held_by is not None:
                context.run(held_by.set, self._decode(name, bytes(raw)))
        return context

    def _decode(self, name: str, raw: bytes) -> Any:
        try:
            return self._shape.decode(raw)
        except DecodeError as problem:
            raise about(f"context variable {name!r}", problem) from problem
