"""The shape of the code, checked by reading it.

Everything here works on the syntax tree; nothing is imported. The tables say
what is allowed, so that a change of shape is a change of a table and is seen.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

LAYERS: tuple[tuple[str, ...], ...] = (
    ("_errors",),
    ("_model", "_limits", "_clock"),
    # Pure: functions from values to values.
    ("_transitions", "_notes", "_retry", "_codec*", "_failure", "_input", "_callable", "_journal"),
    ("_info", "_context", "_control", "_culprits", "_edge", "_filter", "_retry_plan", "_places"),
    # The seam, and a storage that needs nothing but memory.
    ("_storage",),
    ("_repeat", "_threads"),
    ("_hints", "_memory*"),
    # The parts of a running host that know nothing of each other.
    (
        "_collector",
        "_lease",
        "_mailbox",
        "_observe",
        "_outside",
        "_registry",
        "_timers",
        "_undos",
        "_watch",
    ),
    ("_refused", "_overdue", "_suspects", "_turns"),
    ("_group", "_busy", "_writer"),
    ("_services",),
    ("_deadline",),
    # One process, from its journal to its end.
    ("_lifecycle", "_caller"),
    ("_recorded",),
    ("_run",),
    ("_transaction", "_heartbeat", "_once", "_report"),
    ("_steps", "_waits", "_variable", "_branch", "_durable_call"),
    ("_plain_step", "_compensation", "_race", "_timeout", "_map", "_children"),
    ("_process_*",),
    ("_process",),
    ("_runner",),
    ("_rehearsal",),
    # All processes of a host, and what holds them from outside.
    ("_config",),
    ("_claiming",),
    ("_session",),
    ("_requests",),
    ("_retention", "_bulk"),
    ("_handle", "_client"),
    ("_host",),
    # What users import.
    ("errors", "storage"),
    ("__init__", "testing", "testing.*"),
)
"""Lowest first. A module may import what stands in its own row or above it in this table."""

PURE = ("_model", "_limits", "_transitions", "_notes", "_retry", "_codec*", "_journal", "_info")
IMPURE_IMPORTS = {"asyncio", "os", "random", "secrets", "socket", "threading", "time"}

FORBIDDEN_IMPORTS = {"pickle", "marshal", "importlib", "shelve", "dill"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "compile"}

_USER_CLASS = "the class is the user's; whatever its code raises means that the value does not fit"
_USER_ERROR = "an exception of the user's; looking at it must never raise another one"
_ITEM = "the recorded failure of an item; the lowest is raised when all have ended"
_CONTRACT = "a storage that raises what it may not fails the host; user code must never see it"

BROAD_EXCEPTS: dict[tuple[str, str], str] = {
    ("durabletask/_codec.py", "Shape.pack"): _USER_CLASS,
    ("durabletask/_codec.py", "Shape.unpack"): _USER_CLASS,
    ("durabletask/_codec_classes.py", "call_user_code"): _USER_CLASS,
    ("durabletask/_codec_foreign.py", "PydanticNode.pack"): _USER_CLASS,
    ("durabletask/_failure.py", "Failures.encode"): _USER_ERROR,
    ("durabletask/_failure.py", "Failures._rebuildable_args"): _USER_ERROR,
    ("durabletask/_failure.py", "Failures._registered"): _USER_ERROR,
    ("durabletask/_failure.py", "_text"): _USER_ERROR,
    ("durabletask/_lease.py", "keep_renewed"): _CONTRACT,
    ("durabletask/_map.py", "Map._pass_gate"): _ITEM,
    ("durabletask/_map.py", "Map._unseal"): _ITEM,
    ("durabletask/_map.py", "Map._run_item"): _ITEM,
    (
        "durabletask/_compensation.py",
        "_undone",
    ): "what an undo raises is recorded, and the other undos still run",
    ("durabletask/_observe.py", "tell"): "an observer that raises is logged and fails no process",
    ("durabletask/_claiming.py", "Claiming.for_ever"): _CONTRACT,
    (
        "durabletask/_steps.py",
        "StepRun._next_note",
    ): "retry_if is the user's; its fault must not lose the failure of the step",
    ("durabletask/_threads.py", "_work"): "handed to whoever awaits the call, as executors do",
    ("durabletask/_group.py", "GroupCommit._run"): "handed to each that waits for the batch",
    ("durabletask/_writer.py", "Writer._commit"): _CONTRACT,
    (
        "storage/durabletask_filesystem/_thread.py",
        "_work",
    ): "handed to whoever awaits the job, as every executor does",
}
"""(file, function) where everything is caught and kept, and why that is right there.

A handler that only cleans up and ends in a bare `raise` need not be here.
"""


@dataclass(frozen=True)
class Source:
    """One file: its path from the root, its dotted name and its text.

    It is parsed when it is first looked into, so that whoever collects the tests waits for nothing.
    """

    path: str
    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def lines(self) -> int:
        return self.text.count("\n")


class Import(NamedTuple):
    """One imported name: `import a.b` has no member; `from a import b` has member b."""

    module: str
    member: str | None
    line: int


def read(base: Path, *folders: str) -> list[Source]:
    """Read every module below the folders; `base` is where their dotted names begin."""
    found = []
    for folder in folders:
        for path in sorted((base / folder).rglob("*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts)
            text = path.read_text(encoding="utf-8")
            found.append(Source(str(path.relative_to(ROOT)), name, text))
    return found


PACKAGE = read(ROOT, "durabletask")
BACKENDS = read(ROOT / "storage", *(path.name for path in (ROOT / "storage").glob("durabletask_*")))
OUTSIDE = read(ROOT, "samples", "benchmarks")
TESTS = read(ROOT, "tests")
SHIPPED = PACKAGE + BACKENDS


def imports(tree: ast.AST) -> Iterator[Import]:
    """Yield every import in a tree, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)


def layer(module: str) -> int | None:
    """Return the row of a module of `durabletask` in the table, by its name inside the package."""
    for row, patterns in enumerate(LAYERS):
        if any(fnmatch(module, pattern) for pattern in patterns):
            return row
    return None


def inside(name: str) -> str:
    """Return a dotted name without the package: `durabletask._model` is `_model`."""
    return (
        name.removeprefix("durabletask").removeprefix(".").removesuffix(".__init__") or "__init__"
    )


def siblings(source: Source, known: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield the modules of `durabletask` that a source imports, with the line."""
    names = set(known)
    for module, member, line in imports(source.tree):
        if member is not None and f"{module}.{member}" in names:
            yield f"{module}.{member}", line
        elif module == "durabletask" or module.startswith("durabletask."):
            yield module, line


MODULES = {source.name.removesuffix(".__init__") for source in PACKAGE}


def at_run_time(source: Source) -> Source:
    """Return a module without what only type checkers read; at run time that is no import."""

    class Cut(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            self.generic_visit(node)
            return None if ast.unparse(node.test).endswith("TYPE_CHECKING") else node

    return replace(source, text=ast.unparse(Cut().visit(ast.parse(source.text))))


def graph() -> dict[str, set[str]]:
    """Return which module of the package imports which when it is loaded or run."""
    edges: dict[str, set[str]] = {}
    for source in PACKAGE:
        bare = at_run_time(source)
        edges[source.name.removesuffix(".__init__")] = {name for name, _ in siblings(bare, MODULES)}
    return edges


def functions(tree: ast.AST) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{prefix}.{child.name}".lstrip(".")
                yield name, child
            yield from walk(child, name)

    for name, node in walk(tree, ""):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield name, node


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how long a function is without its docstring."""
    first = node.body[0]
    docstring = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        docstring = (first.end_lineno or first.lineno) - first.lineno + 1
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def _raises_again(node: ast.ExceptHandler) -> bool:
    last = node.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def broad_excepts(source: Source) -> Iterator[tuple[str, int]]:
    """Yield (function, line) of each handler that keeps Exception, BaseException or everything."""
    spans = [(node.lineno, node.end_lineno or 0, name) for name, node in functions(source.tree)]
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler) or _raises_again(node):
            continue
        caught = (
            {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)}
            if (node.type)
            else {"BaseException"}
        )
        if caught & {"Exception", "BaseException"}:
            around = [name for first, last, name in spans if first <= node.lineno <= last]
            yield (around[-1] if around else "<module>"), node.lineno


def unreachable_from_itself(edges: dict[str, set[str]]) -> list[str]:
    """Return the modules that are part of an import cycle."""

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(edges[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo.extend(edges.get(name, ()))
        return seen

    return sorted(name for name in edges if name in reaches(name))


def test_arrows_point_down() -> None:
    """A module imports only what stands beside or below it: host on top, errors at the bottom."""
    wrong = []
    for source in PACKAGE:
        here = layer(inside(source.name))
        if here is None:
            wrong.append(f"{source.path}: not in LAYERS; give it its row")
            continue
        for module, line in siblings(source, MODULES):
            there = layer(inside(module))
            if there is not None and there > here:
                wrong.append(f"{source.path}:{line} imports {module}, which stands above it")
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles() -> None:
    """No module of the package can reach itself through imports."""
    assert unreachable_from_itself(graph()) == []


def test_the_cycle_finder_finds_a_cycle() -> None:
    """The cycle check can fail: a ring of three is found, what hangs on it is not."""
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert unreachable_from_itself(edges) == ["a", "b", "c"]


def roundabout(source: Source) -> Iterator[int]:
    """Yield the lines where a source imports the root of its own package, or relatively.

    The root imports its modules: while it does, the names that they would take from it are not
    there yet. `from root import _x` asks the root too; `from root._x import y` does not.
    """
    root = source.name.partition(".")[0]
    for module, _, line in imports(source.tree):
        if module == root or module.startswith("."):
            yield line


def test_siblings_not_the_root() -> None:
    """Inside a package nothing imports the package's root, and nothing imports relatively."""
    wrong = [f"{source.path}:{line}" for source in SHIPPED for line in roundabout(source)]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("import durabletask_x", True),
        ("from durabletask_x import _y", True),
        ("from . import _y", True),
        ("def f():\n  from ._y import z", True),
        ("from durabletask_x._y import z", False),
        ("import durabletask_x._y as _y", False),
        ("from durabletask import Process", False),
    ],
)
def test_the_finder_of_roots_finds_them(text: str, wrong: bool) -> None:
    """The check above can fail: for each package's own root, in each form, wherever it stands."""
    source = Source("x", "durabletask_x._a", text)
    assert bool(list(roundabout(source))) is wrong


def test_pure_modules_are_pure() -> None:
    """The pure core has no clock, no I/O, no chance and no await."""
    wrong = []
    for source in PACKAGE:
        if not any(fnmatch(inside(source.name), pattern) for pattern in PURE):
            continue
        wrong += [
            f"{source.path}:{line} imports {module}"
            for module, _, line in imports(source.tree)
            if module.partition(".")[0] in IMPURE_IMPORTS
        ]
        wrong += [
            f"{source.path}:{node.lineno} {name} is async"
            for name, node in functions(source.tree)
            if isinstance(node, ast.AsyncFunctionDef)
        ]
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_fit() -> None:
    """No file is above 600 lines and no function above 70, docstring not counted."""
    wrong = [
        f"{source.path}: {source.lines} lines"
        for source in SHIPPED + OUTSIDE + TESTS
        if source.lines > FILE_LINES_MAX
    ]
    wrong += [
        f"{source.path}:{node.lineno} {name}: {body_lines(node)} lines"
        for source in SHIPPED + OUTSIDE + TESTS
        for name, node in functions(source.tree)
        if body_lines(node) > FUNCTION_LINES_MAX
    ]
    assert not wrong, "\n".join(wrong)


def test_stored_data_is_only_data() -> None:
    """F135, G15: nothing that is shipped can load code by name or run text."""
    wrong = [
        f"{source.path}:{line} imports {module}"
        for source in SHIPPED
        for module, _, line in imports(source.tree)
        if module.partition(".")[0] in FORBIDDEN_IMPORTS
    ]
    wrong += [
        f"{source.path}:{node.lineno} calls {node.func.id}()"
        for source in SHIPPED
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FORBIDDEN_CALLS
    ]
    assert not wrong, "\n".join(wrong)


def private(source: Source, name: str | None) -> bool:
    """Return whether a dotted name is ours, internal, and not of the source's own package."""
    parts = (name or "").split(".")
    ours = parts[0] == "durabletask" or parts[0].startswith("durabletask_")
    own = parts[0] == source.name.partition(".")[0]
    return ours and not own and any(part.startswith("_") and part != "__main__" for part in parts)


def test_outside_uses_public_names() -> None:
    """Backends, samples and benchmarks import only what any user could."""
    wrong = []
    for source in BACKENDS + OUTSIDE:
        for module, member, line in imports(source.tree):
            name = module if member is None else f"{module}.{member}"
            if private(source, name):
                wrong.append(f"{source.path}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_broad_excepts_have_a_reason() -> None:
    """Every handler of Exception or BaseException is on the list, and the list has no dead rows."""
    found: dict[tuple[str, str], int] = {}
    for source in SHIPPED + OUTSIDE:
        for function, line in broad_excepts(source):
            found[source.path, function] = line
    unlisted = [
        f"{path}:{found[path, name]} in {name}"
        for path, name in found.keys() - BROAD_EXCEPTS.keys()
    ]
    assert not unlisted, "say why in BROAD_EXCEPTS, or catch less:\n" + "\n".join(sorted(unlisted))
    assert BROAD_EXCEPTS.keys() - found.keys() == set()


@pytest.mark.parametrize(
    ("text", "broad"),
    [
        ("try:\n  f()\nexcept: pass", True),
        ("try:\n  f()\nexcept Exception as e: pass", True),
        ("try:\n  f()\nexcept (ValueError, BaseException): pass", True),
        ("try:\n  f()\nexcept ValueError: pass", False),
        ("try:\n  f()\nexcept BaseException:\n  g()\n  raise", False),
    ],
)
def test_the_finder_of_broad_excepts_finds_them(text: str, broad: bool) -> None:
    """The check above can fail: bare, single and listed forms are seen, narrow ones are not."""
    assert bool(list(broad_excepts(Source("x", "x", text)))) is broad


def test_tests_name_their_promise() -> None:
    """Every test, the shipped conformance suite's too, has a docstring that says what it proves."""
    missing = [
        f"{source.path}:{node.lineno} {name}"
        for source in TESTS + PACKAGE
        for name, node in functions(source.tree)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert not missing, "\n".join(missing)


def test_public_modules_are_documented() -> None:
    """Every shipped module says what it is responsible for."""
    assert [source.path for source in SHIPPED if not ast.get_docstring(source.tree)] == []
