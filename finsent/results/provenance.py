"""Where a run comes from: versions of the libraries and the git commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "perforatedai",
    "bitsandbytes",
    "safetensors",
    "scikit-learn",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of PACKAGES, without those that are not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # finsent itself is usually run from a checkout; bitsandbytes is optional
    return found


def git_commit(root: Path | None) -> str | None:
    """Commit of the checkout at `root`, with `-dirty` if tracked code differs.

    None outside a checkout, which a `root` of None says too.

    FINSENT_GIT_COMMIT says it where the files came without their history, as in a container.
    """
    told = os.environ.get("FINSENT_GIT_COMMIT")
    if told:
        return told
    git = shutil.which("git")
    if git is None or root is None:
        return None
    head = subprocess.run([git, "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    if head.returncode != 0:
        return None
    changed = subprocess.run(
        [git, "status", "--porcelain", "--untracked-files=no", "--", "*.py"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
