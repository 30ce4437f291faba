"""The backbones that have a name here, and the settings that suit each on a kind of device.

Free of torch (see finsent.engines.rule).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from finsent.config import Precision
from finsent.data.registry import DATASETS
from finsent.machine import hub
from finsent.models.encoder_families import FAMILIES
from finsent.models.encoder_weights import MINILM, MPNET, ensure_encoder
from finsent.models.weights import ReportProgress, ensure_embedded, ensure_tiny_phi


class BackboneError(RuntimeError):
    """A backbone that cannot be found, loaded, or used by this project."""


@dataclass(frozen=True)
class Recipe:
    """Settings that suit a backbone on a kind of device; LOG.md says where they come from.

    The names are TrainConfig's and LoraConfig's, but for `cued` and the prefix of `lora_`.
    """

    precision: Precision
    last_layers: int | None = None
    depth: int | None = None
    pooling: str = "last"
    learning_rate: float = 5e-4
    batch_size: int = 16
    epochs: int = 8
    label_smoothing: float = 0.0
    class_weight_power: float = 1.0
    lora_r: int = 8
    lora_alpha: float = 16.0
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    cued: bool = False
    """Whether texts end with their data set's cue (DatasetEntry.cue)."""


@dataclass(frozen=True)
class Preset:
    """A named backbone."""

    name: str
    source: Callable[[ReportProgress | None], str]
    """Returns a local folder or a Hub id."""
    cuda: Recipe
    cpu: Recipe
    """Adapts few blocks: all of a large model would take days."""

    def recipe(self, device: str) -> Recipe:
        """What suits a type of device, "cpu" or "cuda"."""
        return self.cpu if device == "cpu" else self.cuda


def cue(recipe: Recipe, dataset: str) -> str:
    """What ends every text of a data set under a recipe; nothing for one that has no entry."""
    return DATASETS[dataset].cue if recipe.cued and dataset in DATASETS else ""


_ENCODER = Recipe(
    "fp32",
    pooling="mean",
    batch_size=32,
    class_weight_power=0.5,
    lora_r=16,
    lora_alpha=32.0,
)
_MPNET = replace(_ENCODER, learning_rate=3e-4, epochs=6, target_modules=FAMILIES["mpnet"].maps)
_MINILM = replace(_ENCODER, learning_rate=8e-4, epochs=8, target_modules=FAMILIES["bert"].maps)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="phi-2",
            source=lambda progress: "microsoft/phi-2",
            cuda=Recipe("nf4"),
            cpu=Recipe("bf16", last_layers=2),
        ),
        Preset(
            name="smollm2-135m",
            source=lambda progress: str(ensure_embedded(progress=progress)),
            cuda=Recipe("fp32", epochs=6, cued=True),
            cpu=Recipe(
                "fp32",
                last_layers=6,
                depth=24,
                learning_rate=1e-3,
                batch_size=32,
                cued=True,
            ),
        ),
        Preset(
            name="mpnet-base",
            source=lambda progress: str(ensure_encoder(MPNET, progress=progress)),
            cuda=_MPNET,
            cpu=_MPNET,
        ),
        Preset(
            name="minilm-l6",
            source=lambda progress: str(ensure_encoder(MINILM, progress=progress)),
            cuda=_MINILM,
            cpu=_MINILM,
        ),
        Preset(
            name="tiny-phi",
            source=lambda progress: str(ensure_tiny_phi()),
            cuda=Recipe("fp32"),
            cpu=Recipe("fp32"),
        ),
    )
}


def require_source(name: str, source: str) -> None:
    """Raises BackboneError where a backbone's source is neither a folder nor on the Hub."""
    if Path(source).is_dir():
        return
    try:
        hub.require(source, "config.json")
    except Exception as error:  # the Hub client's transport, and so its errors, vary by release
        raise not_loaded(name, source, error) from error


def not_loaded(name: str, source: str, error: Exception) -> BackboneError:
    """The error in one line, with what to do."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    place = "" if source == name else f" from {source!r}"
    return BackboneError(
        f"could not load backbone {name!r}{place}: {reason}. Name a preset, a Hub id (with network "
        "access) or a local model folder."
    )


def preset(name: str) -> Preset:
    """The preset of that name, or one made up on the spot for any other Hub id or folder."""
    if name in PRESETS:
        return PRESETS[name]
    return Preset(
        name=name,
        source=lambda progress: name,
        cuda=Recipe("bf16"),
        cpu=Recipe("fp32", last_layers=4),
    )
