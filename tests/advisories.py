"""Published advisories for the pinned packages, kept so that they can be compared without network.

    python -m tests.advisories <clone of github.com/pypa/advisory-database>

writes tests/advisories.json: for every package in constraints.txt the ranges of versions that an
advisory names, which tests/test_advisories.py compares with the pins. The data is PyPA's
(CC BY 4.0).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(__file__).with_suffix(".json")


def pins() -> dict[str, str]:
    """Package -> version, as constraints.txt has them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonical(name): version.split(";")[0].strip() for name, version in found.items()}


def canonical(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def affects(advisory: dict[str, Any], version: str) -> bool:
    """Whether a version is in one of an advisory's ranges, or among those that it lists."""
    found = Version(version)
    for events in advisory["ranges"]:
        inside = False
        steps = [(Version(at), kind) for event in events for kind, at in event.items()]
        for at, kind in sorted(steps):
            if kind == "introduced" and found >= at:
                inside = True
            elif (kind == "fixed" and found >= at) or (kind == "last_affected" and found > at):
                inside = False
        if inside:
            return True
    return version in advisory["versions"]


def collect(clone: Path) -> dict[str, Any]:
    """What tests/advisories.json holds, from the newest commit of a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(clone), *arguments], capture_output=True, text=True, check=True
        ).stdout

    wanted = pins()
    found: dict[str, list[dict[str, Any]]] = {}
    for path in git("ls-tree", "-r", "--name-only", "HEAD", "vulns").splitlines():
        name = canonical(path.split("/")[1])
        if name not in wanted:
            continue
        content = yaml.safe_load(git("show", f"HEAD:{path}"))
        if content.get("withdrawn"):
            continue
        for entry in content["affected"]:
            if canonical(entry["package"]["name"]) == name:
                ranges = [r["events"] for r in entry.get("ranges", []) if r["type"] == "ECOSYSTEM"]
                versions = [] if ranges else entry.get("versions", [])
                found.setdefault(name, []).append(
                    {"id": content["id"], "ranges": ranges, "versions": versions}
                )
    commit, date = git("log", "-1", "--format=%H %cs").split()
    return {
        "source": "github.com/pypa/advisory-database",
        "commit": commit,
        "date": date,
        "advisories": dict(sorted(found.items())),
    }


if __name__ == "__main__":
    KEPT.write_text(json.dumps(collect(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
