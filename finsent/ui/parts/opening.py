"""The headline that the page opens with, answered once for all who open it."""

from __future__ import annotations

import logging
import threading

from finsent.results.catalog import Catalog, dataset_examples
from finsent.serving.service import ModelService, ServiceError
from finsent.ui.parts.answer import answered_html, waiting_html

ROUNDS = 12
"""How often it is asked: the first times of a model that has just been loaded are not counted, and
of the others there have to be enough for a median."""

_log = logging.getLogger(__name__)


class Opening:
    """An example of the default runs' data set and its answer, once the model has given it."""

    def __init__(self, catalog: Catalog, service: ModelService) -> None:
        self._catalog, self._service = catalog, service
        self.selection = catalog.select(catalog.backbones()[0])
        self.text = dataset_examples(self.selection.dataset)[0].text
        self._lock = threading.Lock()
        self._asking = False
        self._html = ""

    def html(self) -> str:
        """The answer, or what it waits for."""
        return self._html or waiting_html(self._service.status.message)

    def prepare(self) -> None:
        """Begins asking in the background, if the model is there and nobody has yet."""
        with self._lock:
            ready = self._service.status.phase == "ready"
            if self._asking or not ready or not self._service.holds(self.selection):
                return
            self._asking = True
        threading.Thread(target=self._ask, name="opening-answer", daemon=True).start()

    def _ask(self) -> None:
        try:
            for _ in range(ROUNDS):
                outcome = self._service.compare(self.text, self.selection)
            self._html = answered_html(self._catalog, outcome)
        except (ServiceError, OSError, RuntimeError, ValueError):
            # Whoever opens the page asks by himself then, and is told.
            _log.exception("the opening headline could not be answered")
            with self._lock:
                self._asking = False
