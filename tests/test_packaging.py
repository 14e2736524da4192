"""What is built and shipped."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL_PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from that sdist, as an installer without a wheel would."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def wheel_files(built: Path) -> set[str]:
    """Return the names in the one wheel."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def source_files(base: Path, folder: str) -> set[str]:
    """Return the files of a package in the checkout, as a wheel names them."""
    return {
        path.relative_to(base).as_posix()
        for path in (base / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_backend_is_listed() -> None:
    """S0.13: what stands under storage/ is what the wheel is told to carry, and is importable."""
    backends = {
        f"storage/{path.name}"
        for path in (ROOT / "storage").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert backends == set(WHEEL_PACKAGES) - {"durabletask"}
    assert all((ROOT / backend / "__init__.py").is_file() for backend in backends)
    assert not (ROOT / "storage" / "__init__.py").exists()


def test_the_wheel_holds_every_file_and_nothing_else(built: Path) -> None:
    """The wheel carries each package whole, and adds no top-level storage, tests or samples."""
    names = {name for name in wheel_files(built) if ".dist-info/" not in name}
    expected = source_files(ROOT, "durabletask")
    for package in WHEEL_PACKAGES[1:]:
        expected |= source_files(ROOT / "storage", Path(package).name)
    assert names == expected
    tops = {name.partition("/")[0] for name in names}
    assert tops == {Path(package).name for package in WHEEL_PACKAGES}


def test_the_wheel_is_typed_and_licensed(built: Path) -> None:
    """Each package is marked as typed, and the licence travels with the wheel."""
    names = wheel_files(built)
    for package in WHEEL_PACKAGES:
        assert f"{Path(package).name}/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_can_be_tested(built: Path) -> None:
    """The sdist carries the tests, the samples with their data, and what the README points to."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "docs/concepts.md",
        "samples/data/transfers.csv",
        "tests/test_packaging.py",
    }
    assert wanted <= names


def test_the_core_needs_two_packages_only() -> None:
    """The library depends on orjson and msgspec and on nothing else."""
    names = {requirement.split(">")[0] for requirement in PROJECT["project"]["dependencies"]}
    assert names == {"orjson", "msgspec"}
