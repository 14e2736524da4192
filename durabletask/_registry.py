"""Which process functions a host has, under which names."""

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from durabletask._codec import Codec
from durabletask._errors import RegistrationError, UnregisteredProcessError
from durabletask._input import Signature
from durabletask._limits import Limits, check_name
from durabletask._retry import RetryPolicy

ProcessFunction = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Definition:
    """A process function with all that is known about it.

    Attributes:
        name: Under which its processes are stored.
        retry: For its steps that name no policy of their own.
        concurrency: So many of its processes at most are on a host at once; None for no limit.
    """

    name: str
    fn: ProcessFunction
    signature: Signature
    retry: RetryPolicy | None
    concurrency: int | None = None


class Registry:
    """Process functions by name, and names by function."""

    def __init__(self, codec: Codec, limits: Limits) -> None:
        self._codec = codec
        self._limits = limits
        self._by_name: dict[str, Definition] = {}

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._by_name)

    def __contains__(self, name: str) -> bool:
        """Whether a function is registered under the name."""
        return name in self._by_name

    def add(
        self,
        fn: ProcessFunction,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        concurrency: int | None = None,
    ) -> Definition:
        """Register a function.

        Raises:
            RegistrationError: It is no process function, the name is taken, or
                none of its processes could ever run.
        """
        if concurrency is not None and (
            isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1
        ):
            raise RegistrationError(
                f"concurrency must be at least 1, or None for no limit; not {concurrency!r}"
            )
        signature = Signature(fn, self._codec, self._limits)
        name = check_name("process name", getattr(fn, "__name__", "") if name is None else name)
        if name in self._by_name:
            raise RegistrationError(
                f"a process function named {name!r} is registered already: "
                f"{self._by_name[name].fn!r}",
                hint="give one of them another name: @host.process(name=…)",
            )
        definition = Definition(name, fn, signature, retry, concurrency)
        self._by_name[name] = definition
        return definition

    def concurrency(self) -> dict[str, int]:
        """Return the limits of the names that have one."""
        return {
            name: definition.concurrency
            for name, definition in self._by_name.items()
            if definition.concurrency is not None
        }

    def named(self, name: str) -> Definition | None:
        """Return what is registered under a name."""
        return self._by_name.get(name)

    def of(self, fn: ProcessFunction) -> Definition:
        """Return the definition of a function.

        Raises:
            UnregisteredProcessError: It was never registered here.
        """
        for definition in self._by_name.values():
            # Equal, not identical: each access makes another bound method.
            if definition.fn == fn:
                return definition
        raise UnregisteredProcessError(
            f"{getattr(fn, '__qualname__', fn)!r} is not registered",
            hint="decorate it with @host.process, or give ProcessHost(processes=[…])",
        )
