"""Frozen language models: precision, tokenisation, and the part that never changes.

With a frozen decoder, hidden states below the first adapted block are constants of the data. They
are computed once (`entering_hidden_states`) and training runs only the blocks above
(`upper_blocks`). An encoder is adapted whole, so what enters its training is token ids.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from finsent.config import BACKBONE_TITLES, PRECISIONS, Precision
from finsent.machine.devices import cuda_available
from finsent.models.encoders import (
    blocks_of,
    blocks_path,
    family_of,
    final_states,
)
from finsent.models.presets import BackboneError, not_loaded, preset, require_source
from finsent.models.tokenization import repeated, room_for, token_batches
from finsent.models.weights import ReportProgress, folder_sha256

WITH_POOLER = ("bert", "roberta", "xlm-roberta", "mpnet")
"""Encoders with a layer behind the blocks that is left out."""


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster there: on GPUs that have them. CPUs without matrix units do
    not gain what the copies cost (LOG.md)."""
    if device.type != "cuda":
        return False
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def default_device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if cuda_available() else "cpu")


@dataclass
class Backbone:
    """A frozen language model without a head, with its tokenizer."""

    name: str
    decoder: Any
    """transformers model: (B, L) token ids or (B, L, H) embeddings -> hidden states (B, L, H).
    An encoder stands here too; `final_states` calls either."""
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
    def is_encoder(self) -> bool:
        """Whether every token looks at all others, not only at those before it."""
        return family_of(self.decoder) is not None

    @property
    def n_blocks(self) -> int:
        """Number of transformer blocks."""
        return len(blocks_of(self.decoder))

    def first_adapted_block(self, last_layers: int | None) -> int:
        """Index of the first of the last N blocks. BackboneError if there are not so many, or for
        some blocks of an encoder."""
        if last_layers is None:
            return 0
        if self.is_encoder:
            raise BackboneError(
                f"{self.name} is an encoder, whose blocks are adapted all; use --last-layers all"
            )
        if last_layers > self.n_blocks:
            raise BackboneError(
                f"cannot adapt the last {last_layers} blocks: {self.name} has {self.n_blocks}"
            )
        return self.n_blocks - last_layers

    def tokenize(
        self, texts: Sequence[str], max_length: int, suffix: str = "", copies: int = 1
    ) -> list[list[int]]:
        """Token ids of each text, cut so that with those of `suffix` they are `max_length` at most.

        Not padded. BackboneError for a text without tokens, or a suffix that leaves no room.
        """
        if suffix and self.is_encoder:
            raise BackboneError(
                f"{self.name} is an encoder, which goes on with no text: leave out the suffix "
                f"{suffix!r}"
            )
        end = self.tokenizer(suffix, add_special_tokens=False)["input_ids"] if suffix else []
        room = room_for(max_length, end, suffix)
        read = [repeated(text, copies) for text in texts]
        ids = self.tokenizer(read, truncation=True, max_length=room)["input_ids"]
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
    progress: ReportProgress | None = None,
) -> Backbone:
    """Load a frozen backbone for `device`, from `folder` if given instead of its usual source.

    `depth` keeps only the first blocks (see TrainConfig.depth). Where `folder` has a folder of the
    backbone's name, that one is meant.

    Raises BackboneError: one line that says what to do.
    """
    if precision not in PRECISIONS:
        raise BackboneError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError(
            "device cuda was asked for, but torch sees no CUDA GPU; use --device cpu"
        )
    if folder is not None:
        # A folder of several models holds each under its name.
        folder = folder / name if (folder / name / "config.json").is_file() else folder
        if not (folder / "config.json").is_file():
            raise BackboneError(f"{folder} is no model folder: it has no config.json")
    source = str(folder) if folder is not None else preset(name).source(progress)
    if progress is not None:
        progress(f"loading {BACKBONE_TITLES.get(name, name)}", 0.0)
    require_source(name, source)
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    options: dict[str, Any] = {
        "dtype": torch.float32 if precision == "fp32" else torch.bfloat16,
        "use_safetensors": True,  # pickled weights could run code
    }
    if precision == "nf4":
        options.update(_nf4_options(device))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        settings = AutoConfig.from_pretrained(source)
        if getattr(settings, "hidden_act", None) == "gelu_new":
            # The same function as one kernel, not eight with as many copies kept for the gradient.
            settings.hidden_act = "gelu_pytorch_tanh"
        if settings.model_type in WITH_POOLER:
            options["add_pooling_layer"] = False  # trained for another task; nothing here reads it
        decoder = AutoModel.from_pretrained(source, config=settings, **options)
    except (OSError, ValueError) as error:
        raise not_loaded(name, source, error) from error
    _require_usable(decoder, name)
    if depth is not None:
        _cut(decoder, name, depth)
    if precision != "nf4":
        decoder = decoder.to(device)
    decoder.requires_grad_(False)
    decoder.eval()
    if family_of(decoder) is None:
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
    try:
        blocks_of(decoder)
    except AttributeError as error:
        raise BackboneError(
            f"{name!r} ({type(decoder).__name__}) does not keep its blocks in "
            f"`.{blocks_path(decoder)}`; supported are decoder models such as Phi, Llama, SmolLM2, "
            "Qwen and Mistral, and encoders such as BERT, RoBERTa, MPNet and ModernBERT"
        ) from error


def _cut(decoder: Any, name: str, depth: int) -> None:
    blocks = blocks_of(decoder)
    if depth > len(blocks):
        raise BackboneError(f"depth {depth} was asked for, but {name} has {len(blocks)} blocks")
    decoder.set_submodule(blocks_path(decoder), blocks[:depth])
    _sync_config(decoder, 0)


def _sync_config(decoder: Any, first: int) -> None:
    """Make the configuration speak of the blocks that are there, counted from `first`."""
    count = len(blocks_of(decoder))
    decoder.config.num_hidden_layers = count
    kinds = getattr(decoder.config, "layer_types", None)
    if kinds is not None:
        decoder.config.layer_types = list(kinds)[first : first + count]


def _fingerprint(source: str, decoder: Any) -> str:
    folder = Path(source)
    if folder.is_dir():
        return folder_sha256(folder)
    commit = getattr(decoder.config, "_commit_hash", None)
    if commit is None:
        raise BackboneError(f"{source!r} came without a commit hash; use a local folder instead")
    return f"commit:{commit}"


class _Reached(Exception):
    """Carries the hidden states that entered a block out of a forward pass."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def states_entering(decoder: Any, block: int, input_ids: Tensor) -> Tensor:
    """Hidden states (B, L, H) that enter block `block` for token ids (B, L).

    Right padding is harmless: attention is causal, so no real token sees the padding behind it.

    Raises:
        BackboneError: The decoder's forward pass does not reach that block.
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

    Shares every parameter with `decoder`; nothing is copied but the configuration. An encoder has
    no upper blocks of its own: it is returned as it is.
    """
    if family_of(decoder) is not None:
        return decoder
    upper = copy.copy(decoder)
    upper._modules = dict(decoder._modules)
    upper.config = copy.deepcopy(decoder.config)
    upper.layers = nn.ModuleList(list(decoder.layers)[first:])
    _sync_config(upper, first)
    return upper


@dataclass
class HiddenStates:
    """What enters the adapted blocks for many texts, ragged: row t of text i is
    values[offsets[i] + t]. Hidden states for a decoder, token ids for an encoder."""

    values: Tensor
    """(total tokens, H), or (total tokens,) int64"""
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
        """Right-padded states (B, longest, H), or ids (B, longest), of texts, and where their last
        tokens are (B,).

        `longest` is given rather than computed so that no step waits for the device.
        """
        start = self.offsets[indices]
        length = self.offsets[indices + 1] - start
        steps = torch.arange(longest, device=self.values.device)
        # Padding repeats the last token: any finite values do, nothing looks at them.
        rows = start[:, None] + torch.minimum(steps[None, :], (length - 1)[:, None])
        return self.values[rows], length - 1


def states_leaving(upper: Any, entering: Tensor, last: Tensor) -> Tensor:
    """Final states (B, L, H) of what `HiddenStates.batch` gives, by a model's upper blocks."""
    if not entering.is_floating_point():
        return final_states(upper, entering, last)
    states: Tensor = upper(inputs_embeds=entering).last_hidden_state
    return states


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


def right_padded(token_ids: Sequence[Sequence[int]]) -> Tensor:
    """Token ids of texts as one tensor (texts, longest), zeros behind the shorter ones."""
    return pad_sequence([torch.tensor(ids) for ids in token_ids], batch_first=True)


def entering_hidden_states(
    backbone: Backbone,
    token_ids: Sequence[Sequence[int]],
    block: int,
    *,
    max_tokens: int = 4096,
    progress: ReportProgress | None = None,
) -> HiddenStates:
    """What enters block `block` for every text, in the order given, on the backbone's device.

    For an encoder these are the token ids as they are.

    Args:
        token_ids: Of every text, without padding.
        max_tokens: Padded tokens of a batch.
        progress: Told what is done and which share of it.
    """
    lengths = [len(ids) for ids in token_ids]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    if backbone.is_encoder:
        flat = torch.tensor([token for ids in token_ids for token in ids])
        return HiddenStates(flat, offsets).to(backbone.device)
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

    Not so for decoders that attend both ways or rescale their input embeddings: BackboneError. Of
    an encoder the same is asked: its batch with padding, as `final_states` computes it, against
    transformers' own forward of each text alone.
    """
    ids = [list(token_ids[0])[:16], list(token_ids[-1])[:8]]
    states = entering_hidden_states(backbone, ids, block)
    upper = upper_blocks(backbone.decoder, block)
    hidden, last = states.batch(torch.arange(2, device=backbone.device), max(map(len, ids)))
    ours = states_leaving(upper, hidden, last)
    for row, tokens in enumerate(ids):
        whole = backbone.decoder(input_ids=torch.tensor([tokens], device=backbone.device))
        expected = whole.last_hidden_state[0, -1].float()
        found = ours[row, last[row]].float()
        difference = (found - expected).norm() / expected.norm()
        tolerance = 1e-3 if backbone.precision == "fp32" else 6e-2
        if not difference <= tolerance:
            raise BackboneError(
                f"{backbone.name} does not split at block {block}: relative difference "
                f"{difference:.2g} on a padded batch, expected at most {tolerance:g}. Supported "
                "are causal decoders that take input embeddings unscaled, and the known encoders."
            )
