"""What ends in one line for the user, and what keeps its traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from finsent.config import ConfigError
from finsent.machine.errors import message_for_user, traceback_of
from finsent.serving.lifecycle.states import State, TransitionError
from finsent.training import child_main
from finsent.training.progress_lines import ProgressLines


def raised(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([] if name is None else [name]))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("epochs must be at least 1, got 0"), "epochs must be at least 1, got 0"),
        (raised(errno.ENOENT, "/no/such/file"), "/no/such/file: No such file or directory"),
        (raised(errno.EACCES, "/root/out.csv"), "/root/out.csv: Permission denied"),
        (raised(errno.ENAMETOOLONG, "xxx"), "xxx: File name too long"),
        (raised(errno.ENOSPC), "No space left on device"),
        (raised(errno.EROFS, "/out"), "/out: Read-only file system"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_user_can_mend_is_one_line(error: Exception, said: str) -> None:
    assert message_for_user(error) == said


@pytest.mark.parametrize(
    "error",
    [
        ValueError("could not broadcast"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        raised(errno.EBADF),  # used after it was closed
        raised(errno.EPIPE),
        raised(errno.ECHILD),
        raised(errno.ENOENT),  # of no file
        OSError("a bare one"),
        TransitionError("a model that is idle cannot become ready"),
    ],
    ids=repr,
)
def test_a_mistake_in_the_program_is_not(error: Exception) -> None:
    assert message_for_user(error) is None


@pytest.mark.parametrize(
    ("error", "is_bug"),
    [
        (raised(errno.ENOSPC), False),
        (raised(errno.EBADF), True),
        (ConfigError("no"), False),
        (KeyError("lora"), True),
    ],
    ids=repr,
)
def test_a_run_that_fails_tells_the_trainer_which_it_is(
    error: Exception, is_bug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(child_main, "run_job", broken)
    said = child_main._error_of(None, None, ProgressLines)  # type: ignore[arg-type]
    assert said is not None
    assert ("Traceback" in said) == is_bug


def test_a_real_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory") as caught:
        (tmp_path / "missing" / "out.csv").write_text("x")
    said = message_for_user(caught.value)
    assert said is not None
    assert "missing/out.csv" in said
    with pytest.raises(TransitionError):
        State().failed("from nothing")


def test_a_log_gets_the_place_of_an_error_and_not_its_words() -> None:
    with pytest.raises(ValueError, match="typed") as caught:
        raise ValueError("what somebody typed")
    said = traceback_of(caught.value)
    assert "test_errors.py" in said
    assert said.endswith("ValueError")
    # The line of the code is quoted, as it stands in the file.
    assert "ValueError: what somebody typed" not in said
