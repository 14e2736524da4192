"""A limit on everything that can grow, and the one rule for ids, keys and names."""

from dataclasses import dataclass

from durabletask._errors import InvalidIdError

NAME_BYTES_MAX = 255
"""The shortest of what file systems, indexes and subjects of the backends allow."""

ERROR_MESSAGE_BYTES_MAX = 16 * 1024
"""Of a recorded error; a longer message is cut, since the error itself must not be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a host or a client lets through.

    Attributes:
        value_bytes_max: Encoded size of one value or event payload.
        input_bytes_max: Encoded size of the arguments of one process.
        depth_max: Nesting of a value.
        steps_max: Checkpoints of one process; at `steps_warn` a warning is logged.
        mailbox_max: Unconsumed events of one process.
        resident_max: Processes that a host holds in memory at once.
        batch_units_max: Units in one commit.
        batch_bytes_max: Payload bytes in one commit; one larger unit still goes alone.
        threads_max: Synchronous steps that run at once.
        deaths_max: Hosts that may die in a row while they run one process,
            nothing of it being recorded in between, before it is quarantined.
    """

    value_bytes_max: int = 2 * 1024 * 1024
    input_bytes_max: int = 2 * 1024 * 1024
    depth_max: int = 100
    steps_max: int = 50_000
    steps_warn: int = 10_000
    mailbox_max: int = 10_000
    resident_max: int = 100_000
    batch_units_max: int = 10_000
    batch_bytes_max: int = 8 * 1024 * 1024
    threads_max: int = 32
    deaths_max: int = 20


def check_name(what: str, text: object) -> str:
    """Return `text` if it can name something in every storage.

    Args:
        what: Names the argument in the message, such as "process_id".
        text: 1 to 255 bytes of UTF-8 without control characters. Compared
            byte for byte: upper and lower case, NFC and NFD stay different.

    Raises:
        InvalidIdError: It cannot; the message says why.
    """
    if type(text) is str and text.isascii() and text.isprintable() and 0 < len(text) <= 255:
        return text
    if not isinstance(text, str):
        raise InvalidIdError(f"{what} must be a str, not {type(text).__name__}")
    if not text:
        raise InvalidIdError(f"{what} is empty")
    if len(text) > NAME_BYTES_MAX:
        raise InvalidIdError(
            f"{what} is {len(text):,} characters long: {text[:40]!r}…",
            hint=f"at most {NAME_BYTES_MAX} bytes; hash what is longer",
        )
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidIdError(
            f"{what} {text!a} has a lone surrogate at position {error.start}"
        ) from None
    if size > NAME_BYTES_MAX:
        raise InvalidIdError(f"{what} is {size} bytes of UTF-8; at most {NAME_BYTES_MAX}")
    for position, character in enumerate(text):
        if character < " " or "\x7f" <= character <= "\x9f":
            raise InvalidIdError(f"{what} {text!a} has a control character at position {position}")
    return str(text)
