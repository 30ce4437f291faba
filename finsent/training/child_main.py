"""Runs in a process of their own: load, train, evaluate once on test, write the artifact.

Started by `finsent.training.child`, which says why. The process reads a job from every line of its
standard input, makes that run, and answers with a line: the arms of a seed follow one another on
one base in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import IO

import torch
from safetensors import SafetensorError

from finsent.machine.errors import message_for_user
from finsent.training.child import Job
from finsent.training.progress_lines import ProgressBar, ProgressLines, ShowProgress
from finsent.training.run import Bases, run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the child process: jobs in, replies out. Ends at the first failure, because
    a run that failed may leave the base with its adapters."""
    parser = argparse.ArgumentParser(
        prog="python -m finsent.training.child_main", description=__doc__
    )
    parser.add_argument("--lines", action="store_true", help="print progress in lines, not a bar")
    options = parser.parse_args(arguments)
    # Replies get a channel of their own: libraries print to standard output.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    bases = Bases()
    for job in _jobs_from(sys.stdin):
        error = _error_of(job, bases, ProgressLines if options.lines else ProgressBar)
        print(json.dumps({"error": error}), file=replies, flush=True)
        if error is not None:
            return 1
    return 0


def _error_of(job: Job, bases: Bases, show: ShowProgress) -> str | None:
    """Make a run; returns what to tell the user if that failed."""
    try:
        run_job(job, bases, show)
    except torch.cuda.OutOfMemoryError:
        return _too_small()
    except SafetensorError as error:
        return f"a file of weights is damaged: {error}"
    except Exception as error:
        said = message_for_user(error)
        # A bug is told by the trainer as well, with the other failures.
        return traceback.format_exc() if said is None else said
    return None


def _jobs_from(lines: IO[str]) -> Iterator[Job]:
    """Jobs as they come. When the input ends during a job, the trainer was killed: so is this
    process, and the run goes on when it is asked for again."""
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    idle = threading.Event()

    def listen() -> None:
        for line in lines:
            jobs.put(Job.from_json(line))
        if not idle.is_set():
            os._exit(1)
        jobs.put(None)

    idle.set()
    threading.Thread(target=listen, daemon=True).start()
    while (job := jobs.get()) is not None:
        idle.clear()
        yield job
        idle.set()


def _too_small() -> str:
    free, total = torch.cuda.mem_get_info()
    return (
        f"the GPU is too small for this run: {free / 1e9:.1f} of {total / 1e9:.1f} GB are free; "
        "use --precision nf4, a smaller --batch-size or --max-length, or adapt fewer blocks with "
        "--last-layers"
    )


if __name__ == "__main__":
    sys.exit(main())
