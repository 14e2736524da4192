"""Which processes descend from which, in memory as far as somebody below has not finished.

A process without a parent takes no room here. One that has finished stays
while it has unfinished descendants: a line must not break with it. Knows no
files; what finished before the folder was opened is asked for once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from durabletask.storage import Parent
from durabletask_filesystem._state import Proc


class _Link(NamedTuple):
    """What a line needs of a process in it."""

    parent: Parent | None
    incarnation: int


def _link(proc: Proc) -> _Link:
    return _Link(proc.more.parent, proc.incarnation)


class Family:
    """Parents and children.

    Args:
        procs: The unfinished processes.
    """

    def __init__(self, procs: Mapping[str, Proc]) -> None:
        self._procs = procs
        self._children: dict[str, dict[str, None]] = {}
        self._ended: dict[str, _Link] = {}

    def add(self, proc: Proc) -> None:
        """Remember whose child an unfinished process is; harmless to repeat."""
        self.drop(proc.id)
        self._join(proc.id, proc.more.parent)

    def end(self, proc: Proc) -> None:
        """A process has finished; it stays in its line while others are below it."""
        if proc.id in self._children:
            self._ended[proc.id] = _link(proc)
        else:
            self._cut(proc.id, proc.more.parent)

    def drop(self, process_id: str) -> None:
        """A finished process is gone, and the line breaks where it was."""
        link = self._ended.pop(process_id, None)
        if link is not None:
            self._cut(process_id, link.parent)

    def complete(
        self, finished: Callable[[str], Proc | None], ids: Iterable[str] | None = None
    ) -> None:
        """Find the lines that lead through processes which have finished, of all or of these."""
        among = self._children if ids is None else ids
        rest = [each for each in among if each not in self._procs]
        while rest:
            process_id = rest.pop()
            proc = None if process_id in self._ended else finished(process_id)
            if proc is None:
                continue
            self._ended[process_id] = _link(proc)
            parent = proc.more.parent
            self._join(process_id, parent)
            if parent is not None and parent.process_id not in self._procs:
                rest.append(parent.process_id)

    def below(self, proc: Proc) -> list[Proc]:
        """Return the unfinished descendants, also those below a finished one, as `list` would."""
        found: list[Proc] = []
        # By id: an id may be created anew below itself, and a line must end.
        seen = {proc.id}
        rest = [(proc.id, proc.incarnation)]
        while rest:
            for process_id, link in self._children_of(*rest.pop()):
                if process_id in seen:
                    continue
                seen.add(process_id)
                rest.append((process_id, link.incarnation))
                child = self._procs.get(process_id)
                if child is not None:
                    found.append(child)
        found.sort(key=lambda child: (child.created_at, child.id))
        return found

    def _children_of(self, process_id: str, incarnation: int) -> Iterator[tuple[str, _Link]]:
        for each in self._children.get(process_id, ()):
            proc = self._procs.get(each)
            link = self._ended.get(each) if proc is None else _link(proc)
            if (
                link is not None
                and link.parent is not None
                and (link.parent.process_id, link.parent.incarnation) == (process_id, incarnation)
            ):
                yield each, link

    def _join(self, process_id: str, parent: Parent | None) -> None:
        if parent is not None:
            self._children.setdefault(parent.process_id, {})[process_id] = None

    def _cut(self, process_id: str, parent: Parent | None) -> None:
        """Take a process out of its line, and what is in the line for its sake only."""
        while parent is not None:
            children = self._children.get(parent.process_id)
            if children is None:
                return
            children.pop(process_id, None)
            if children:
                return
            del self._children[parent.process_id]
            link = self._ended.pop(parent.process_id, None)
            if link is None:
                return
            process_id, parent = parent.process_id, link.parent
