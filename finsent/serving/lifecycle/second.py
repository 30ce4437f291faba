"""A second base model beside the default: it is fetched and loaded while the default answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from finsent.results.catalog import Selection, backbone_title
from finsent.serving.lifecycle.states import Status
from finsent.serving.lifecycle.turns import Turns

if TYPE_CHECKING:
    from finsent.models.weights import ReportProgress
    from finsent.serving.comparer import Comparer

_log = logging.getLogger(__name__)

Load = Callable[[Selection, "ReportProgress"], "Comparer"]
"""Makes a comparer over a selection's runs."""


class SecondModel:
    """One base model in memory beside the default, the one that was asked for last. Thread-safe."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.turns = Turns()
        self._changed = threading.Condition()
        # All below are read and written only while `_changed` is held.
        self._comparer: Comparer | None = None
        self._held: str | None = None
        self._coming: str | None = None
        self._problem: tuple[str, str] | None = None
        """Base model that could not be loaded, and why."""
        self._progress: tuple[str, float] | None = None

    @property
    def comparer(self) -> Comparer | None:
        """The model in memory; None before the first is."""
        return self._comparer

    def holds(self, backbone: str) -> bool:
        """Whether a base model is in memory and can be asked at once."""
        with self._changed:
            return self._held == backbone

    def status(self) -> Status | None:
        """What is being loaded or could not be; None when there is nothing to say."""
        with self._changed:
            if self._coming is not None:
                stage, fraction = self._progress or ("Loading", None)
                return Status("loading", f"{backbone_title(self._coming)}: {stage}", fraction)
            if self._problem is not None:
                title, why = backbone_title(self._problem[0]), self._problem[1]
                return Status("failed", f"{title} could not be loaded: {why}")
            return None

    def problem(self, backbone: str) -> str | None:
        """Why a base model could not be loaded when it was last tried."""
        with self._changed:
            return self._problem[1] if self._problem and self._problem[0] == backbone else None

    def bring(self, selection: Selection, folder: Path) -> None:
        """Begins loading a base model in the background, unless it is here or on its way."""
        with self._changed:
            if selection.backbone == self._held or self._coming is not None:
                return
            self._coming, self._problem, self._progress = selection.backbone, None, None
        threading.Thread(
            target=self._bring, args=(selection, folder), name="load-second", daemon=True
        ).start()

    def wait_for(self, selection: Selection, folder: Path) -> str | None:
        """Waits until a base model is in memory; why it cannot be, if it cannot."""
        backbone = selection.backbone
        while True:
            self.bring(selection, folder)
            with self._changed:
                self._changed.wait_for(lambda: self._coming is None)
                if self._held == backbone:
                    return None
                if self._problem is not None and self._problem[0] == backbone:
                    return self._problem[1]

    def _bring(self, selection: Selection, folder: Path) -> None:
        held, problem = None, None
        try:
            comparer = self._comparer
            if comparer is None:
                comparer = self._load(selection, self._report)
                with self.turns.take(selection, lambda: None):
                    self._comparer = comparer
            else:
                with self.turns.take(
                    selection, lambda: comparer.use(folder, selection.seed, selection.arms)
                ):
                    pass
            held = selection.backbone
        except Exception as error:
            # The thread's only way to tell who waits; asking again tries again.
            _log.exception("loading %s", selection)
            problem = (selection.backbone, str(error))
        with self._changed:
            self._held, self._problem, self._coming = held, problem, None
            self._changed.notify_all()

    def _report(self, stage: str, fraction: float) -> None:
        with self._changed:
            self._progress = (stage, min(max(fraction, 0.0), 1.0))
