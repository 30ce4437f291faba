"""Frozen language models: presets, precision, tokenisation, and the part that never changes.

With a frozen base, hidden states below the first adapted block are constants of the data. They are
computed once (`entering_hidden_states`) and training runs only the blocks above (`upper_blocks`).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from finsent.config import PRECISIONS, Precision
from finsent.data import DATASETS
from finsent.weights import Progress, ensure_embedded, ensure_tiny_phi, sha256_file, tensors_sha256

BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
"""Most tokens of a batch that pay, by type of device: a CPU's caches hold less than what a GPU
needs to be busy. Measured by bench/serve_cpu.py batches."""


class BackboneError(RuntimeError):
    """A backbone that cannot be found, loaded, or used by this project."""


@dataclass(frozen=True)
class Recipe:
    """Settings that suit a backbone on a kind of device; LOG.md says where they come from.

    The names are TrainConfig's and LoraConfig's, but for `cued`.
    """

    precision: Precision
    last_layers: int | None = None
    depth: int | None = None
    pooling: str = "last"
    learning_rate: float = 5e-4
    batch_size: int = 16
    epochs: int = 8
    label_smoothing: float = 0.0
    cued: bool = False
    """Whether texts end with their data set's cue (DatasetEntry.cue)."""


@dataclass(frozen=True)
class Preset:
    """A named backbone."""

    name: str
    title: str
    licence: str
    source: Callable[[Progress | None], str]
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


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="phi-2",
            title="Phi-2 (2.7 B)",
            licence="MIT",
            source=lambda progress: "microsoft/phi-2",
            cuda=Recipe("nf4"),
            cpu=Recipe("bf16", last_layers=2),
        ),
        Preset(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
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
            name="tiny-phi",
            title="a random 2-layer Phi (tests only)",
            licence="none: random weights",
            source=lambda progress: str(ensure_tiny_phi()),
            cuda=Recipe("fp32"),
            cpu=Recipe("fp32"),
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of that name, or one made up on the spot for any other Hub id or folder."""
    if name in PRESETS:
        return PRESETS[name]
    return Preset(
        name=name,
        title=name,
        licence="see the model's own page",
        source=lambda progress: name,
        cuda=Recipe("bf16"),
        cpu=Recipe("fp32", last_layers=4),
    )


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster there: on GPUs that have them. CPUs without matrix units do
    not gain what the copies cost (LOG.md)."""
    if device.type != "cuda":
        return False
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def default_device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class FileTokenizer:
    """The tokenizer of a model folder without transformers, which takes seconds to import."""

    def __init__(self, folder: Path, max_length: int, suffix: str = "") -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BackboneError(f"{folder} has no tokenizer.json")
        self._name = folder.name
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._end = self._tokenizer.encode(suffix, add_special_tokens=False).ids
        self._tokenizer.enable_truncation(_room(max_length, self._end, suffix))

    @property
    def suffix_length(self) -> int:
        """Tokens of the suffix."""
        return len(self._end)

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        """Token ids of each text, and whether it was cut. BackboneError on no tokens."""
        found = self._tokenizer.encode_batch(list(texts))
        for text, encoding in zip(texts, found, strict=True):
            if not encoding.ids:
                raise BackboneError(f"the tokenizer of {self._name} makes no token of {text!r}")
        return [([*encoding.ids, *self._end], bool(encoding.overflowing)) for encoding in found]


def _room(max_length: int, end: Sequence[int], suffix: str) -> int:
    """Tokens left for the text when the suffix takes its own."""
    room = max_length - len(end)
    if room < 1:
        raise BackboneError(
            f"the prompt suffix {suffix!r} is {len(end)} tokens long and leaves no room for a "
            f"text in {max_length}; shorten it or raise --max-length"
        )
    return room


@dataclass
class Backbone:
    """A frozen decoder without a language-modelling head, with its tokenizer."""

    name: str
    decoder: Any
    """transformers model: (B, L) token ids or (B, L, H) embeddings -> hidden states (B, L, H)."""
    tokenizer: Any
    precision: Precision
    device: torch.device
    sha256: str
    """Identifies the weights: checksum of local files, or the Hub's commit."""

    @property
    def hidden_size(self) -> int:
        """Width H of the hidden states."""
        return int(self.decoder.config.hidden_size)

    @property
    def n_blocks(self) -> int:
        """Number of transformer blocks."""
        return len(self.decoder.layers)

    def first_adapted_block(self, last_layers: int | None) -> int:
        """Index of the first of the last N blocks. BackboneError if there are not so many."""
        if last_layers is None:
            return 0
        if last_layers > self.n_blocks:
            raise BackboneError(
                f"cannot adapt the last {last_layers} blocks: {self.name} has {self.n_blocks}"
            )
        return self.n_blocks - last_layers

    def tokenize(self, texts: Sequence[str], max_length: int, suffix: str = "") -> list[list[int]]:
        """Token ids of each text, cut so that with those of `suffix` they are `max_length` at most.

        Not padded. BackboneError for a text without tokens, or a suffix that leaves no room.
        """
        end = self.tokenizer(suffix, add_special_tokens=False)["input_ids"] if suffix else []
        room = _room(max_length, end, suffix)
        ids = self.tokenizer(list(texts), truncation=True, max_length=room)["input_ids"]
        for text, tokens in zip(texts, ids, strict=True):
            if not tokens:
                raise BackboneError(f"the tokenizer of {self.name} makes no token of {text!r}")
        return [[*tokens, *end] for tokens in ids]


def load_backbone(
    name: str,
    precision: Precision,
    device: torch.device,
    *,
    depth: int | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Backbone:
    """Load a frozen backbone for `device`, from `folder` if given instead of its usual source.

    `depth` keeps only the first blocks (see TrainConfig.depth).

    Raises BackboneError: one line that says what to do.
    """
    if precision not in PRECISIONS:
        raise BackboneError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError(
            "device cuda was asked for, but torch sees no CUDA GPU; use --device cpu"
        )
    if folder is not None and not (folder / "config.json").is_file():
        raise BackboneError(f"{folder} is no model folder: it has no config.json")
    source = str(folder) if folder is not None else preset(name).source(progress)
    if progress is not None:
        progress(f"loading {preset(name).title}", 0.0)
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    options: dict[str, Any] = {"dtype": torch.float32 if precision == "fp32" else torch.bfloat16}
    if precision == "nf4":
        options.update(_nf4_options(device))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        settings = AutoConfig.from_pretrained(source)
        if getattr(settings, "hidden_act", None) == "gelu_new":
            # The same function as one kernel, not eight with as many copies kept for the gradient.
            settings.hidden_act = "gelu_pytorch_tanh"
        decoder = AutoModel.from_pretrained(source, config=settings, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(
            f"could not load backbone {name!r} from {source!r}: {reason} "
            "Name a preset, a Hub id (with network access) or a local model folder."
        ) from error
    _require_usable(decoder, name)
    if depth is not None:
        _cut(decoder, name, depth)
    if precision != "nf4":
        decoder = decoder.to(device)
    decoder.requires_grad_(False)
    decoder.eval()
    decoder.config.use_cache = False
    if precision == "nf4" and device.type == "cpu":
        _keep_trainable_on_cpu(decoder)
    return Backbone(name, decoder, tokenizer, precision, device, _fingerprint(source, decoder))


def _nf4_options(device: torch.device) -> dict[str, Any]:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise BackboneError(
            f"precision nf4 needs bitsandbytes, which does not import here ({error}); "
            "pip install bitsandbytes, or choose --precision bf16"
        ) from error
    from transformers import BitsAndBytesConfig

    return {
        "device_map": {"": device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    }


def _keep_trainable_on_cpu(decoder: Any) -> None:
    """In evaluation mode bitsandbytes repacks 4-bit weights for a CPU kernel without a gradient."""
    for module in decoder.modules():
        if type(module).__name__ == "Linear4bit":
            module.train()


def _require_usable(decoder: Any, name: str) -> None:
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise BackboneError(
            f"{name!r} ({type(decoder).__name__}) does not keep its blocks in `.layers`; "
            "supported are decoder models such as Phi, Llama, SmolLM2, Qwen and Mistral"
        )


def _cut(decoder: Any, name: str, depth: int) -> None:
    if depth > len(decoder.layers):
        raise BackboneError(
            f"depth {depth} was asked for, but {name} has {len(decoder.layers)} blocks"
        )
    decoder.layers = decoder.layers[:depth]
    _sync_config(decoder, 0)


def _sync_config(decoder: Any, first: int) -> None:
    """Make the configuration speak of the blocks that are there, counted from `first`."""
    decoder.config.num_hidden_layers = len(decoder.layers)
    kinds = getattr(decoder.config, "layer_types", None)
    if kinds is not None:
        decoder.config.layer_types = list(kinds)[first : first + len(decoder.layers)]


def _fingerprint(source: str, decoder: Any) -> str:
    folder = Path(source)
    if folder.is_dir():
        return folder_sha256(folder)
    commit = getattr(decoder.config, "_commit_hash", None)
    if commit is None:
        raise BackboneError(f"{source!r} came without a commit hash; use a local folder instead")
    return f"commit:{commit}"


def folder_sha256(folder: Path) -> str:
    """Identifies the weights in a model folder."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return tensors_sha256(files[0])
    digests = "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
    return hashlib.sha256(digests.encode()).hexdigest()


class _Reached(Exception):
    """Carries the hidden states that entered a block out of a forward pass."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def states_entering(decoder: Any, block: int, input_ids: Tensor) -> Tensor:
    """Hidden states (B, L, H) that enter block `block` for token ids (B, L).

    Right padding is harmless: attention is causal, so no real token sees the padding behind it.
    """

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    handle = decoder.layers[block].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        decoder(input_ids=input_ids)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise BackboneError(f"a forward pass did not reach block {block}")


def upper_blocks(decoder: Any, first: int) -> Any:
    """A decoder of the blocks `first` and above that takes hidden states as `inputs_embeds`.

    Shares every parameter with `decoder`; nothing is copied but the configuration.
    """
    upper = copy.copy(decoder)
    upper._modules = dict(decoder._modules)
    upper.config = copy.deepcopy(decoder.config)
    upper.layers = nn.ModuleList(list(decoder.layers)[first:])
    _sync_config(upper, first)
    return upper


@dataclass
class HiddenStates:
    """Ragged hidden states of many texts: row t of text i is values[offsets[i] + t]."""

    values: Tensor
    """(total tokens, H)"""
    offsets: Tensor
    """(texts + 1,) int64"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text: (texts,) int64."""
        return self.offsets.diff()

    def to(self, device: torch.device) -> HiddenStates:
        """The same states on another device."""
        return HiddenStates(self.values.to(device), self.offsets.to(device))

    def batch(self, indices: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Right-padded states (B, longest, H) of texts, and where their last tokens are (B,).

        `longest` is given rather than computed so that no step waits for the device.
        """
        start = self.offsets[indices]
        length = self.offsets[indices + 1] - start
        steps = torch.arange(longest, device=self.values.device)
        # Padding repeats the last token: any finite values do, nothing looks at them.
        rows = start[:, None] + torch.minimum(steps[None, :], (length - 1)[:, None])
        return self.values[rows], length - 1


def pool(states: Tensor, last: Tensor, pooling: str) -> Tensor:
    """Final states (B, L, H) of right-padded texts whose last tokens are at `last` (B,) -> (B, H).

    `pooling` is "last" or "mean" (see TrainConfig.pooling); the result is fp32.
    """
    if pooling not in ("last", "mean"):
        raise ValueError(f"pooling must be 'last' or 'mean', got {pooling!r}")
    steps = torch.arange(states.shape[1], device=last.device)[None, :]
    read = steps == last[:, None] if pooling == "last" else steps <= last[:, None]
    # where, not multiplication: whatever stands in the padding must not reach the sum. A sum, not
    # an index: the gradient of indexing is slow where kernels have to be deterministic.
    kept = torch.where(read[:, :, None], states.float(), 0.0).sum(dim=1)
    return kept if pooling == "last" else kept / (last + 1)[:, None]


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Index batches in order of length whose padded size stays within `max_tokens`."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[index] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def right_padded(token_ids: Sequence[Sequence[int]]) -> Tensor:
    """Token ids of texts as one tensor (texts, longest), zeros behind the shorter ones."""
    return pad_sequence([torch.tensor(ids) for ids in token_ids], batch_first=True)


def entering_hidden_states(
    backbone: Backbone,
    token_ids: Sequence[Sequence[int]],
    block: int,
    *,
    max_tokens: int = 4096,
    progress: Progress | None = None,
) -> HiddenStates:
    """What enters block `block` for every text, in the order given, on the backbone's device."""
    lengths = [len(ids) for ids in token_ids]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    dtype = torch.float32 if backbone.precision == "fp32" else torch.bfloat16
    values = torch.empty(
        int(offsets[-1]), backbone.hidden_size, dtype=dtype, device=backbone.device
    )
    done = 0
    for batch in token_batches(lengths, max_tokens):
        padded = right_padded([token_ids[i] for i in batch]).to(backbone.device)
        hidden = states_entering(backbone.decoder, block, padded)
        for row, i in enumerate(batch):
            values[offsets[i] : offsets[i + 1]] = hidden[row, : lengths[i]]
        done += sum(lengths[i] for i in batch)
        if progress is not None:
            progress(f"hidden states below block {block}", done / int(offsets[-1]))
    return HiddenStates(values, offsets.to(backbone.device))


@torch.no_grad()
def check_decomposition(backbone: Backbone, token_ids: Sequence[Sequence[int]], block: int) -> None:
    """Make sure that lower + upper blocks, with padding, compute what the whole model computes.

    Not so for models that attend both ways or rescale their input embeddings: BackboneError.
    """
    ids = [list(token_ids[0])[:16], list(token_ids[-1])[:8]]
    states = entering_hidden_states(backbone, ids, block)
    upper = upper_blocks(backbone.decoder, block)
    hidden, last = states.batch(torch.arange(2, device=backbone.device), max(map(len, ids)))
    ours = upper(inputs_embeds=hidden).last_hidden_state
    for row, tokens in enumerate(ids):
        whole = backbone.decoder(input_ids=torch.tensor([tokens], device=backbone.device))
        expected = whole.last_hidden_state[0, -1].float()
        found = ours[row, last[row]].float()
        difference = (found - expected).norm() / expected.norm()
        tolerance = 1e-3 if backbone.precision == "fp32" else 6e-2
        if not difference <= tolerance:
            raise BackboneError(
                f"{backbone.name} does not split at block {block}: relative difference "
                f"{difference:.2g} on a padded batch, expected at most {tolerance:g}. Only causal "
                "decoders that take input embeddings unscaled are supported."
            )
