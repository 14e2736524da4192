"""What the folder and the ledger say when all is done, held against each other."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from durabletask import HistoryEntry, ProcessClient, ProcessInfo
from durabletask_filesystem import FileSystemStorage, check
from tests.kill.program import GUARDED, GUARDED_STEPS, SAGAS, saga_id, saga_result

Step = tuple[str, str]
"""(process_id, key)"""


@dataclass
class Facts:
    """Everything that is left.

    Attributes:
        executed: How often each attempt of each step ran, by (step, attempt).
        keys: The idempotency keys under which each step ran.
        recorded: How often each step is in the history of its process.
    """

    executed: Counter[tuple[Step, int]]
    keys: dict[Step, set[str]]
    recorded: Counter[Step]
    infos: dict[str, ProcessInfo]
    errors: list[HistoryEntry]

    @property
    def repeats(self) -> int:
        """How many executions of an attempt were not its first."""
        return self.executed.total() - len(self.executed)


async def gather(folder: Path) -> Facts:
    """Read the ledger and, as any other program would, the folder."""
    executed: Counter[tuple[Step, int]] = Counter()
    keys: dict[Step, set[str]] = {}
    for line in (folder / "ledger").read_text().splitlines():
        process_id, key, attempt, idempotency_key = line.split("\t")
        executed[(process_id, key), int(attempt)] += 1
        keys.setdefault((process_id, key), set()).add(idempotency_key)
    facts = Facts(executed, keys, Counter(), {}, [])
    async with ProcessClient(FileSystemStorage(folder / "state")) as client:
        async for info in client.list():
            facts.infos[info.id] = info
            for entry in await client.get(info.id).history():
                if entry.kind == "do":
                    facts.recorded[info.id, entry.key] += 1
                    facts.errors += [entry] * (entry.error is not None)
    return facts


def judge(folder: Path, facts: Facts, kills: int) -> Iterator[str]:
    """Yield whatever is wrong."""
    yield from (f"check: {problem}" for problem in check(folder / "state").problems)
    wanted: dict[str, object] = {saga_id(number): saga_result(number) for number in range(SAGAS)}
    wanted |= {f"guarded/{number}": number for number in range(GUARDED)}
    if facts.infos.keys() != wanted.keys():
        yield f"processes: {sorted(facts.infos.keys() ^ wanted.keys())}"
    for process_id, info in facts.infos.items():
        if (info.status, info.result) != ("completed", wanted.get(process_id)):
            yield f"{process_id}: {info.status} {info.result!r}, not {wanted.get(process_id)!r}"
    steps = {step for step, _ in facts.executed}
    for step in steps ^ facts.recorded.keys():
        yield f"{step}: {'never ran' if step in facts.recorded else 'not recorded'}"
    yield from (f"{step}: recorded {n} times" for step, n in facts.recorded.items() if n != 1)
    for (step, attempt), count in facts.executed.items():
        if count > 1 + kills:
            yield f"{step}, attempt {attempt}: ran {count} times with {kills} kills"
    yield from (f"{step}: ran as {keys}" for step, keys in facts.keys.items() if len(keys) > 1)
    yield from (f"{step}: refunded" for step in steps if step[1] == "refund")
    expected = SAGAS * 5 + SAGAS // 5 * 2 + GUARDED * GUARDED_STEPS
    if facts.recorded.total() != expected:
        yield f"{facts.recorded.total()} steps recorded, not {expected}"
    wrong = {type(entry.error).__name__ for entry in facts.errors} - {"StepError"}
    if wrong or len(facts.errors) != SAGAS // 5:
        yield f"recorded errors: {facts.errors}"
