"""Damage of every kind of artifact: the catalog goes on without it, and `verify` finds it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.trust.scenario import Setting, Tally
from finsent.results import manifest
from finsent.ui.renewal import read_catalog
from finsent.verification import verify
from tests.artifact_factory import make_artifacts

Damage = Callable[[random.Random, Path, list[Path]], None]


def flipped(draw: random.Random, path: Path, others: list[Path]) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(draw: random.Random, path: Path, others: list[Path]) -> None:
    """The end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def swapped(draw: random.Random, path: Path, others: list[Path]) -> None:
    """A file of the same name from elsewhere, if there is one that differs, else nothing at all."""
    alike = [o for o in others if o.name == path.name and o.read_bytes() != path.read_bytes()]
    path.write_bytes(draw.choice(alike).read_bytes() if alike else b"")


def damaged(setting: Setting, kind: Damage, *, forged: bool) -> Tally:
    """forged: the manifest is written again afterwards; then only `verify` need not crash, for a
    change may mean nothing."""
    tally, draw = Tally(), setting.random
    whole = make_artifacts(
        setting.folder / "whole",
        backbones=("tiny-phi",),
        datasets=("sample",),
        seeds=(0,),
        n_test=24,
    )
    files = [whole / name for name in (*manifest.files_below(whole), manifest.MANIFEST)]
    served = len(read_catalog(whole).runs)
    for _ in range(setting.count(100)):
        root = Path(shutil.copytree(whole, setting.folder / "damaged"))
        path = root / draw.choice(files).relative_to(whole)
        kind(draw, path, [root / f.relative_to(whole) for f in files])
        name = path.relative_to(root).as_posix()
        if forged and path.name != manifest.MANIFEST:
            manifest.write_manifest(root)
        try:
            found, problems = read_catalog(root), verify(root)
        except Exception as error:
            tally.check(False, f"{name}: {type(error).__name__}: {error}"[:200])
        else:
            left_out = served - len(found.runs)
            one = left_out == len([d for d in found.damaged if "/seed-" in d.place])
            rest = left_out <= 1 or path.name == manifest.MANIFEST
            tally.check(one and rest and (forged or bool(problems)), f"{name}: {problems[:1]}")
        shutil.rmtree(root)
    return tally
