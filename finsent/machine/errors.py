"""Which errors end in one line for the user, and which are bugs and keep their traceback."""

from __future__ import annotations

import errno
import sys
import traceback
import unicodedata

WRONG_USE = 2
"""Exit status after an error that the user can mend, as argparse has it. A command that did its
work and found something wrong in it ends with 1."""

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""What a disk says when it takes no more; the operating system names no file with it."""
FILE_ERRORS = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    }
)
"""What is wrong with a file that somebody named."""


def message_for_user(error: BaseException) -> str | None:
    """What to tell the user in one line.

    Args:
        error: Anything that a command ended with.

    Returns:
        The message of finsent's own errors, which say what to do, and of a file or a disk that
        refuses. None for everything else, other kinds of OSError among them: that is a mistake in
        the program, and only its traceback helps.
    """
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in DISK_ERRORS or (error.errno in FILE_ERRORS and error.filename):
            where = "" if error.filename is None else f"{error.filename}: "
            return f"{where}{error.strerror}"
        return None
    # An AssertionError of ours says that the program contradicts itself.
    ours = type(error).__module__.split(".")[0] == "finsent"
    return str(error) if ours and not isinstance(error, AssertionError) else None


def one_line(text: str) -> str:
    """Text for a terminal: what would break the line or control the terminal is escaped.

    Args:
        text: A message, with whatever a file or a command line put into it.
    """
    return "".join(
        character.encode("unicode_escape").decode() if _breaks_a_line(character) else character
        for character in text.replace("\n", " ")
    )


def _breaks_a_line(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in ("Zl", "Zp")


def traceback_of(error: BaseException) -> str:
    """Where an error was raised and of what kind it is, without its message, for a log."""
    lines = traceback.format_tb(error.__traceback__)
    return f"{''.join(lines)}{type(error).__name__}"


def end_with(error: Exception) -> int:
    """Ends a command that an error stopped: one line on stderr.

    Args:
        error: What stopped it.

    Returns:
        The exit status, WRONG_USE.

    Raises:
        Exception: The error itself, where it is a mistake in the program.
    """
    message = message_for_user(error)
    if message is None:
        raise error
    print(f"error: {one_line(message)}", file=sys.stderr)
    return WRONG_USE
