"""Growing dendrites with PerforatedAI while training. The only module that names the library.

The library keeps all of its state in module-level globals, writes into the working directory, and
stops for a human on several paths. `DendriteGrower` contains that: it hands the library a small
container with nothing but the trainable linear maps in it (never the frozen base), lets it decide
and perform growth, and shows the result to the model as `DendriticLinear` modules that share the
library's parameters. The training forward is therefore ours and costs what the arithmetic costs;
the weights, the decision to grow, the reload of the best state and the new dendrites are the
library's.
"""

from __future__ import annotations

import bdb
import contextlib
import copy
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from finsent.config import DendriteConfig
from finsent.models.adapter_files import DendriticMap
from finsent.models.dendritic_linear import (
    DendriticLinear,
    DendriticLowRank,
    LowRankMap,
    activation_function,
)

log = logging.getLogger(__name__)

_SAVE_NAME = "PAI"
_NEVER = 10**9


class GrowthError(RuntimeError):
    """The library stopped, asked a question, or returned something that cannot be used."""


@dataclass(frozen=True)
class GrowthEvent:
    """What the library did at the end of an epoch."""

    dendrites: int
    """Dendrites per wrapped map from now on."""
    description: str
    """For the history, e.g. "grew dendrite 1"."""


class _Maps(nn.Module):
    """The container the library gets to see."""

    def __init__(self, maps: Mapping[str, nn.Linear | LowRankMap]) -> None:
        super().__init__()
        # The library builds file and attribute names from module names: no dots.
        self.maps = nn.ModuleDict({name.replace(".", "__"): m for name, m in maps.items()})


class DendriteGrower:
    """Context manager that owns PerforatedAI for one run.

    Inside the context, `modules[name]` stands in for the linear map of that name; after every
    `epoch_end` that returns an event its parameters are other objects, and the optimizer has to be
    rebuilt from `parameters()`.

    Only one can be open in a process (the library's state is global): the trainer runs one process
    per run. What it writes goes to `folder`/growth and is removed at the end. Raises GrowthError
    when the library misbehaves.
    """

    def __init__(
        self,
        maps: Mapping[str, nn.Linear | LowRankMap],
        config: DendriteConfig,
        device: torch.device,
        folder: Path,
    ) -> None:
        if not maps:
            raise GrowthError(
                f"no linear map to grow dendrites on for placement {config.placement}"
            )
        for name, linear in maps.items():
            if "__" in name:
                raise GrowthError(f"the name {name!r} holds '__', which stands for a dot here")
            if not linear.weight.requires_grad:
                raise GrowthError(f"{name} is frozen; dendrites grow on trainable maps only")
        self.config = config
        self.device = device
        self._sources = dict(maps)
        self._scratch = folder.absolute() / "growth"
        self._epoch = 0
        self.modules: dict[str, DendriticLinear] = {}

    def __enter__(self) -> DendriteGrower:
        with _quiet():
            from perforatedai import globals_perforatedai as library_globals
            from perforatedai import utils_perforatedai as library_utils
        self._globals = library_globals
        self._saved_settings = copy.copy(vars(library_globals.pc))
        self._saved_tracker = library_globals.pai_tracker
        # A folder left by a killed run holds a settings file that the library would read.
        if self._scratch.exists():
            shutil.rmtree(self._scratch)
        self._scratch.mkdir(parents=True)
        try:
            self._configure()
            with self._calling_library():
                self._net = library_utils.perforate_model(
                    _Maps(self._sources),
                    save_name=_SAVE_NAME,
                    making_graphs=False,
                    maximizing_score=True,
                )
            self._net.to(self.device)
            self._tell_output_sizes()
            for name in self._sources:
                self.modules[name] = self._stand_in(name)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        settings = vars(self._globals.pc)
        settings.clear()
        settings.update(self._saved_settings)
        self._globals.pai_tracker = self._saved_tracker
        shutil.rmtree(self._scratch)

    def _configure(self) -> None:
        pc = self._globals.pc
        # Everything is set explicitly: what is not, the library may read from a file it finds in
        # the working directory. Drawing stays on because switching it off crashes; graphs are off.
        settings: dict[str, Any] = {
            "testing_dendrite_capacity": False,
            "unwrapped_modules_confirmed": True,
            "configuration_confirmed": True,
            "weight_decay_accepted": True,
            "checked_skipped_modules": True,
            "dashboard_events_enabled": False,
            "silent": True,
            "verbose": False,
            "drawing_pai": True,
            "perforated_backpropagation": False,
            "using_safe_tensors": True,
            "test_saves": False,
            "pai_saves": False,
            "device": self.device,
            "use_cuda": self.device.type == "cuda",
            "d_type": torch.float32,
            "output_dimensions": [-1, 0],
            "module_names_to_perforate": ["Linear", LowRankMap.__name__],
            "pai_forward_function": activation_function(self.config.activation),
            "candidate_weight_initialization_multiplier": self.config.init_scale,
            "switch_mode": pc.DOING_HISTORY,
            "n_epochs_to_switch": self.config.patience,
            "history_lookback": 1,
            "initial_history_after_switches": 0,
            # Any better score is better: the trainer selects by the same rule.
            "improvement_threshold": [0.0],
            "improvement_threshold_raw": 0.0,
            "max_dendrites": self.config.max_dendrites,
            "max_dendrite_tries": 2,
            "find_best_lr": False,
            "dont_give_up_unless_learning_rate_lowered": False,
            "maximizing_score": True,
            "save_name": _SAVE_NAME,
        }
        for name, value in settings.items():
            getattr(pc, f"set_{name}")(value)

    @contextlib.contextmanager
    def _calling_library(self) -> Iterator[None]:
        """Run library code in the scratch folder, silenced, with every way of asking shut."""
        with _quiet(), contextlib.chdir(self._scratch):
            try:
                yield
            except (SystemExit, EOFError, bdb.BdbQuit) as error:
                # It exits on some mistakes and opens a prompt or a debugger on others.
                raise GrowthError(f"PerforatedAI gave up or asked a question: {error!r}") from error

    def _tell_output_sizes(self) -> None:
        # The library learns each map's output size in a backward hook of its own forward, which the
        # model never runs: one backward pass through each map on a single zero row.
        for wrapped in self._net.maps.values():
            linear = wrapped.main_module
            row = torch.zeros(1, linear.in_features, device=self.device, dtype=linear.weight.dtype)
            wrapped(row).sum().backward()
        self._net.zero_grad(set_to_none=True)

    def _stand_in(self, name: str) -> DendriticLinear:
        source, made = self._sources[name], self._read(name)
        if isinstance(source, nn.Linear):
            return DendriticLinear(made.weight, made.bias, self.config.activation)
        module = DendriticLowRank(source.a, made.weight, self.config.activation)
        self._hand_over(name, module)
        return module

    def _hand_over(self, name: str, module: DendriticLinear) -> None:
        """Let a module share the parameters that the library holds now."""
        module.adopt(self._read(name))
        if isinstance(module, DendriticLowRank):
            wrapped = self._net.maps[name.replace(".", "__")]
            inner = tuple(layer.a.weight for layer in wrapped.dendrite_module.layers)
            module.adopt_inner(wrapped.main_module.a.weight, inner)

    def _read(self, name: str) -> DendriticMap:
        """The map as the library holds it now; of a low-rank map its outer part."""
        wrapped = self._net.maps[name.replace(".", "__")]
        k = wrapped.dendrite_modules_added
        main, *layers = (
            module.b if isinstance(module, LowRankMap) else module
            for module in (wrapped.main_module, *wrapped.dendrite_module.layers)
        )
        dendrites = tuple((layer.weight, layer.bias) for layer in layers)
        if len(dendrites) != k:
            raise GrowthError(f"{name}: {k} dendrites are in use, {len(dendrites)} exist")
        # `dendrites_to_top` keeps one tensor per growth; the forward pass uses the last one.
        output_weights = wrapped.dendrites_to_top[k - 1] if k else None
        feeding = wrapped.dendrite_module.dendrites_to_dendrites
        return DendriticMap(
            main.weight,
            main.bias,
            dendrites,
            output_weights,
            tuple(feeding[i] for i in range(1, k)),
        )

    def library_forward(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The library's own forward of one map on input (n, in), to compare ours against."""
        return self._net.maps[name.replace(".", "__")]

    @property
    def n_dendrites(self) -> int:
        """Dendrites per wrapped map in use."""
        return max(module.n_dendrites for module in self.modules.values())

    def parameters(self) -> list[nn.Parameter]:
        """What takes part in the forward pass (the library's own list also holds templates)."""
        found = [p for module in self.modules.values() for p in module.parameters()]
        return found + [
            parameter
            for source in self._sources.values()
            if isinstance(source, LowRankMap)
            for parameter in source.a.parameters()
        ]

    def epoch_end(
        self, validation_score: float, optimizer: torch.optim.Optimizer, *, may_grow: bool = True
    ) -> GrowthEvent | None:
        """Report an epoch's validation score; the library may grow. None when nothing changed.

        Args:
            validation_score: In (0, 1], higher is better. The library takes zero for "no score
                yet", so a negative one would never count as an improvement.
            optimizer: That of the epoch; after growth its parameters are no longer the model's.
            may_grow: False after the last epoch, when a new dendrite would never be trained.

        Raises:
            GrowthError: The score is out of range, or the library failed.
        """
        if not 0 < validation_score <= 1:
            raise GrowthError(f"the validation score must be in (0, 1], got {validation_score}")
        before = self.n_dendrites
        full = before >= self.config.max_dendrites
        # The trainer owns the epoch budget. With all dendrites in place a further plateau must not
        # start another cycle, which could take a dendrite away again.
        patience = _NEVER if full or not may_grow else self.config.patience
        overdue = may_grow and before == 0 and self._epoch == self.config.grow_by
        return self._told(validation_score, optimizer, patience, force=overdue)

    def grow(self, optimizer: torch.optim.Optimizer) -> GrowthEvent:
        """Have the library add a dendrite to every map now, where a run of its own has converged
        before. `optimizer` is that of the maps; afterwards its parameters are no longer theirs.

        Raises:
            GrowthError: The library failed, or added none.
        """
        before = self.n_dendrites
        # It adds a further dendrite only where the last one improved the score.
        rising = (self._epoch + 1) / (self._epoch + 2)
        event = self._told(rising, optimizer, self.config.patience, force=True)
        if event is None or event.dendrites != before + 1:
            raise GrowthError(
                f"PerforatedAI was to add dendrite {before + 1} and did: "
                f"{'nothing' if event is None else event.description}"
            )
        return event

    def _told(
        self, score: float, optimizer: torch.optim.Optimizer, patience: int, *, force: bool
    ) -> GrowthEvent | None:
        """Tell the library a score; what it did."""
        before = self.n_dendrites
        self._epoch += 1
        self._globals.pc.set_n_epochs_to_switch(patience)
        with self._calling_library():
            tracker = self._globals.pai_tracker
            tracker.set_optimizer_instance(optimizer)
            net, restructured, _complete = tracker.add_validation_score(
                score, self._net, force_switch=force
            )[:3]
        if not restructured:
            return None
        self._net = net.to(self.device)
        for name, module in self.modules.items():
            self._hand_over(name, module)
        after = self.n_dendrites
        if after > before:
            description = f"grew dendrite {after}"
        elif after == before:
            description = f"replaced dendrite {after}, which had not improved validation"
        else:
            description = f"went back to {after} dendrites, which validated best"
        return GrowthEvent(dendrites=after, description=description)

    def draw(self, path: Path) -> None:
        """Write the library's own chart of the run (scores, growth, times) as PNG to `path`.

        Raises:
            GrowthError: The library failed or drew nothing.
        """
        with self._calling_library():
            tracker = self._globals.pai_tracker
            tracker.making_graphs = True
            try:
                tracker.save_graphs()
            finally:
                tracker.making_graphs = False
        drawn = self._scratch / _SAVE_NAME / f"{_SAVE_NAME}.png"
        if not drawn.exists():
            raise GrowthError("PerforatedAI drew no chart")
        shutil.copyfile(drawn, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's prints out of the trainer's output; they go to the debug log."""
    heard = io.StringIO()
    # An interactive prompt reads standard input; with none it fails instead of waiting for ever.
    with contextlib.redirect_stdout(heard), open(os.devnull) as nothing, _stdin(nothing):
        try:
            yield
        finally:
            if heard.getvalue().strip():
                log.debug("PerforatedAI: %s", heard.getvalue().strip())


@contextlib.contextmanager
def _stdin(stream: io.TextIOBase | Any) -> Iterator[None]:
    import sys

    saved, sys.stdin = sys.stdin, stream
    try:
        yield
    finally:
        sys.stdin = saved
