"""Taking a folder for one program, and saying who has it."""

import os

import orjson

from durabletask.errors import StorageBusyError, StorageFormatError, StorageUnavailableError
from durabletask_filesystem._files import Folder

LOCK_NAME = "LOCK"


def refuse_no_store(path: str | os.PathLike[str]) -> None:
    """Refuse a folder in which nothing of ours is.

    Raises:
        StorageFormatError: There is no store; nothing was touched.
    """
    if not os.path.isdir(os.path.join(path, "segments")):
        raise StorageFormatError(f"there is no store in {os.fspath(path)!r}")


def take_lock(folder: Folder, label: str) -> None:
    """Take the folder for this program.

    Raises:
        StorageBusyError: Another program has it.
        StorageUnavailableError: It cannot be made or written.
    """
    text = orjson.dumps({"pid": os.getpid(), "label": label})
    try:
        folder.lock(LOCK_NAME, text)
    except BlockingIOError:
        raise StorageBusyError(
            f"another program holds the folder: {_holder(folder)}",
            hint="one host per folder; stop the other program, or use a client",
        ) from None
    except OSError as error:
        raise StorageUnavailableError(f"the folder cannot be used: {error}") from error


def _holder(folder: Folder) -> str:
    try:
        found = orjson.loads(folder.read(LOCK_NAME))
        return f"pid {found['pid']} ({found['label']})" if found["label"] else f"pid {found['pid']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say who it is"
