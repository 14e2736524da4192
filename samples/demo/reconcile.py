"""Compares what the library recorded with what really happened.

Four sources that know nothing of each other: the input file, the library's
storage, the bank's database and the ledger of executed steps.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from durabletask import HistoryEntry, ProcessHost, ProcessInfo
from durabletask_filesystem import FileSystemStorage
from samples.demo.bank import REFUSALS, Account, Bank, Entry
from samples.demo.chaos import Ledger, RunLog
from samples.demo.inputs import Folder, Transfer

COMPLETED = "completed"
ROLLED_BACK = "rolled back"


@dataclass(frozen=True)
class Facts:
    """Everything that the four sources say."""

    transfers: Sequence[Transfer]
    opening: Sequence[Account]
    processes: dict[str, ProcessInfo]
    histories: dict[str, list[HistoryEntry]]
    accounts: Sequence[Account]
    entries: Sequence[Entry]
    orders: dict[str, str]
    executed: Counter[tuple[str, str]]
    kills: int
    working_s: float

    @property
    def recorded(self) -> Counter[tuple[str, str]]:
        """How often each step of each process is in the histories."""
        return Counter(
            (process_id, entry.key)
            for process_id, history in self.histories.items()
            for entry in history
            if entry.kind == "do"
        )

    @property
    def outcomes(self) -> dict[str, str]:
        """The result of each process."""
        return {process_id: str(info.result) for process_id, info in self.processes.items()}

    def count(self, outcome: str) -> int:
        """Return how many transfers ended so."""
        return sum(text.startswith(outcome) for text in self.outcomes.values())

    @property
    def repeats(self) -> int:
        """How many executions there were beyond one for each recorded step."""
        return self.executed.total() - self.recorded.total()


@dataclass
class Verdict:
    """What does not fit; nothing, if all is well."""

    faults: list[str] = field(default_factory=list)

    def expect(self, what: str, expected: object, found: object) -> None:
        """Note a fault unless the two are equal."""
        if expected != found:
            self.faults.append(f"{what}: expected {expected}, found {found}")

    def none_of(self, what: str, culprits: Sequence[object]) -> None:
        """Note a fault that names the first few culprits, if there are any."""
        if culprits:
            few = ", ".join(map(str, culprits[:3]))
            self.faults.append(f"{what}: {len(culprits)}, such as {few}")


async def gather_facts(
    folder: Folder, transfers: Sequence[Transfer], opening: Sequence[Account]
) -> Facts:
    """Read all four sources."""
    processes, histories = {}, {}
    async with ProcessHost(FileSystemStorage(folder.processes), errors=REFUSALS) as host:
        async for info in host.list():
            processes[info.id] = info
            histories[info.id] = await host.get(info.id).history()
    bank, runs = Bank(folder.bank), RunLog(folder.runs)
    try:
        return Facts(
            transfers=transfers,
            opening=opening,
            processes=processes,
            histories=histories,
            accounts=bank.accounts(),
            entries=bank.entries(),
            orders=bank.orders(),
            executed=Ledger.read(folder.ledger),
            kills=len(runs.kills()),
            working_s=runs.working_s(),
        )
    finally:
        bank.close()


def total(accounts: Sequence[Account]) -> Decimal:
    """Return all the money there is."""
    return sum((account.balance for account in accounts), Decimal(0))


def judge(facts: Facts) -> Verdict:
    """Reconcile the sources with each other."""
    verdict = Verdict()
    _judge_processes(facts, verdict)
    _judge_money(facts, verdict)
    _judge_steps(facts, verdict)
    return verdict


def _judge_processes(facts: Facts, verdict: Verdict) -> None:
    asked = {transfer.id for transfer in facts.transfers}
    verdict.none_of("transfers without a process", sorted(asked - facts.processes.keys()))
    verdict.none_of("processes that nobody asked for", sorted(facts.processes.keys() - asked))
    unfinished = [i.id for i in facts.processes.values() if i.status != "completed"]
    verdict.none_of("processes not completed", unfinished)
    accounted = facts.count(COMPLETED) + facts.count(ROLLED_BACK)
    verdict.expect("transfers completed or rolled back", len(asked), accounted)


def _judge_money(facts: Facts, verdict: Verdict) -> None:
    verdict.expect("money in the bank", total(facts.opening), total(facts.accounts))

    balances = {account.name: account.balance for account in facts.opening}
    for transfer in facts.transfers:
        if facts.outcomes.get(transfer.id) == COMPLETED:
            balances[transfer.source] -= transfer.amount
            balances[transfer.target] += transfer.amount
    for account in facts.accounts:
        verdict.expect(f"balance of {account.name}", balances[account.name], account.balance)

    books: dict[str, Counter[str]] = {transfer.id: Counter() for transfer in facts.transfers}
    for entry in facts.entries:
        books[entry.reference][entry.state] += 1
    for transfer_id, outcome in facts.outcomes.items():
        completed = outcome == COMPLETED
        order = "settled" if completed else "cancelled"
        verdict.expect(f"order of {transfer_id}", order, facts.orders.get(transfer_id))
        booked = 2 if completed else 0
        verdict.expect(f"entries booked by {transfer_id}", booked, books[transfer_id]["booked"])
        verdict.expect(f"entries still held by {transfer_id}", 0, books[transfer_id]["held"])


def _judge_steps(facts: Facts, verdict: Verdict) -> None:
    recorded, executed = facts.recorded, facts.executed
    verdict.none_of("steps executed and not recorded", sorted(executed.keys() - recorded.keys()))
    verdict.none_of("steps recorded and never executed", sorted(recorded.keys() - executed.keys()))
    verdict.none_of("steps recorded twice", [step for step, n in recorded.items() if n > 1])
    too_often = [step for step, n in executed.items() if n > 1 + facts.kills]
    verdict.none_of("steps executed more than once per kill and once more", too_often)
    if not facts.kills:
        verdict.expect("repeats without a kill", 0, facts.repeats)
