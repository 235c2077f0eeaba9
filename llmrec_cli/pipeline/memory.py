"""How much memory a training stage takes, and how many rows of a forward pass fit.

    recipe -> the model without weights (torch's meta device) -> one pass: what it keeps
    rows and limits of a stage -> MemoryNeed, beside what the machine has -> PassChoice

The dry run executes the library's own code on shapes alone.  What autograd keeps for the backward
pass is so counted for every architecture, with adapters, dropout and packed rows, and not guessed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmrec_cli.config.model import TREE_ATTENTION
from llmrec_cli.config.training import LaunchSection, TrainSection
from llmrec_cli.models import loading
from llmrec_cli.models.language_model import Policy, inner_config
from llmrec_cli.pipeline.requirements import TrainingStage
from llmrec_cli.pipeline.setup import CatalogueContext, base_config, semantic_tokens
from llmrec_cli.tasks.base import StageRows
from llmrec_cli.tensors.losses import CHUNK
from llmrec_cli.tensors.packing import Tree
from llmrec_cli.tensors.trie import Trie, paths
from llmrec_cli.training.collator import count_tokens
from llmrec_cli.training.dataset import Dataset
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.rows import AnyRow, PairRow, Row, TextRow
from llmrec_cli.utils.machine import Memory, find_free_memory, measure_own_memory
from llmrec_cli.utils.variables import LOCAL_SIZE

SHARE: Final = 0.8
"""Of the free memory, what a choice may fill: the estimate is not exact."""

FRAGMENTED: Final = {"full": 1.3, "lora": 1.8}
"""On a CPU: what the C library's allocator holds for each byte of activations.  LoRA makes many
tensors of like sizes, which leave holes: 1.4 to 2.2 were measured, and 1.1 to 1.3 without."""

_LOOKED_AT: Final = 4096  # catalogue entries whose branching positions are counted
_PROCESS: Final = 1 << 29  # bytes of Python and its libraries, where they cannot be measured
_QUANTIZED: Final = {"none": 1.0, "8bit": 0.25, "4bit": 0.14}  # of float32; scales included


# What a pass holds.


@dataclass(frozen=True)
class RowSizes:
    """What the training rows of a stage take."""

    tokens: Sequence[int]  # of each row: prompt and answers, negatives and rollouts too
    answers: int  # of the row with most of them
    packed: bool  # rows are prefix trees, and need a mask

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.tokens)


def measure_rows(stage: TrainingStage, found: StageRows) -> RowSizes:
    """Sizes of the rows that a stage was given.

    Negatives and rollouts are counted by the mean length of an item.
    """
    rows = list(found.rows)
    if found.transforms:
        rows = Dataset(rows, found.transforms).complete_rows(rows, 0)
    tokens = count_tokens(rows, stage.context.trie.to("cpu"))
    extra = 0 if found.transforms else stage.needs.answers - 1
    length = float(np.diff(stage.context.catalogue.start_S1).mean())
    targets = [_count_answers(row, stage.context.trie.max_length) for row in rows]
    return RowSizes(
        tokens=[t + math.ceil(extra * n * length) for t, n in zip(tokens, targets, strict=True)],
        answers=max(targets) * (1 + extra),
        packed=stage.section.rows == "user" or stage.needs.packs,
    )


def _count_answers(row: AnyRow, longest: int) -> int:
    """How many answers a row lays out, negatives of catalogue rows apart.

    Args:
        longest: tokens of the longest item; a title counts as many times as it is longer.
    """
    match row:
        case Row():
            return len(row.targets)
        case PairRow():
            return 2 * len(row.prompts)
        case TextRow():
            return math.ceil(len(row.answer) / longest)


@dataclass(frozen=True)
class PassSize:
    """The largest forward pass of a stage on one device."""

    rows: int
    tokens: int  # of each row, padding included


def find_largest_pass(section: TrainSection, sizes: RowSizes, processes: int) -> PassSize:
    """What ``Limits.of_section`` lets into one pass: the longest rows that there are."""
    share = -(-min(section.batch, len(sizes.tokens)) // processes)
    rows = min(section.micro_batch or share, share)
    if section.micro_tokens is not None:
        rows = min(rows, max(section.micro_tokens // sizes.longest, 1))
    return PassSize(rows, sizes.longest)


# The dry run.


class _Attend(torch.autograd.Function):
    """The shapes of fused attention: it keeps its inputs, its result and its mask."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result, *([] if mask is None else [mask]))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("a dry run has no backward pass")


class _FusedAttention(TorchFunctionMode):
    """torch's fused attention in a dry run: on the meta device it would build all weights."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask")
        given = dict(zip(names, args, strict=False)) | kwargs
        mask = given.get("attn_mask") if self.masked else None
        if mask is not None and mask.dtype == torch.bool:  # the kernel makes numbers of it
            mask = torch.empty(mask.shape, dtype=given["query"].dtype, device=mask.device)
        return _Attend.apply(*(given[name] for name in names[:3]), mask)  # type: ignore[no-untyped-call]  # torch's


@dataclass(frozen=True)
class Kept:
    """What one pass keeps for its backward pass, bytes."""

    total: int
    largest: int  # of its tensors


@dataclass(frozen=True)
class DryModel:
    """A backbone as a stage trains it, without weights."""

    model: nn.Module
    precision: torch.dtype  # of activations
    parameters: int
    trained: int
    largest_trained: int  # parameters of the largest tensor that is trained
    weight_bytes: int
    layers: int
    width: int
    head_trained: bool
    _kept: dict[tuple[int, bool], Kept] = field(default_factory=dict)

    def keep(self, tokens: int, *, packed: bool) -> Kept:
        """What a pass of one row keeps; a pass of n rows keeps n times as much.

        Raises:
            Exception: whatever the library says of shapes without numbers.
        """
        key = tokens, packed
        if key not in self._kept:
            self._kept[key] = _run_dry(self.model, tokens, packed)
        return self._kept[key]


def _run_dry(model: nn.Module, tokens: int, packed: bool) -> Kept:
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, tuple[int, Tensor]] = {}  # the tensor too: its address must not be given again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen.setdefault(storage._cdata, (storage.nbytes(), tensor))
        return tensor

    with (
        torch.device("meta"),
        _FusedAttention(masked=packed),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        ids_BT = torch.zeros(1, tokens, dtype=torch.int64)
        Policy(model)(ids_BT, ids_BT[0, :1], tree=Tree(ids_BT, ids_BT))
    sizes = [size for size, _ in seen.values()]
    return Kept(sum(sizes), max(sizes, default=0))


def build_dry_model(context: CatalogueContext, *, dropout: bool) -> DryModel:
    """The backbone of a recipe on the meta device, with its adapter and dropout; for a moment.

    Args:
        dropout: off for methods that are measured against their own beginning.

    Raises:
        Exception: whatever the library says of the architecture.
    """
    from transformers import AutoModelForCausalLM

    recipe, section = context.recipe, context.recipe.model
    config, precision = base_config(recipe), loading.DTYPES[section.dtype]
    attention = section.attention if section.attention in TREE_ATTENTION else "sdpa"
    with loading.quiet(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=precision, trust_remote_code=False
        )
        before = model.get_input_embeddings().num_embeddings
        after = max(before, len(context.codec.tokenizer))
        if after > before:
            model.resize_token_embeddings(after, mean_resizing=False)
        if section.tuning == "lora":
            vocabulary = context.codec.tokenizer.get_vocab()
            new = {vocabulary[token] for token in semantic_tokens(context.prepared.items)}
            plain = section.model_copy(update={"quantize": "none"})
            model = loading.add_lora(model, plain, sorted(new.union(range(before, after))))
    model.train()
    if not dropout:
        loading.remove_dropout(model)
    elif section.backbone == "scratch":
        loading.add_dropout(model, section.scratch.dropout)
    text = inner_config(model).get_text_config()
    trained = [p for p in model.parameters() if p.requires_grad]
    head = Policy(model).head().weight_VD
    return DryModel(
        model=model,
        precision=precision,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in trained),
        largest_trained=max(p.numel() for p in trained),
        weight_bytes=_count_weight_bytes(model, context),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        head_trained=head.requires_grad,
    )


def _count_weight_bytes(model: Any, context: CatalogueContext) -> int:
    """Of the weights as they are held: all in fp32, or the frozen ones as the recipe has them."""
    section = context.recipe.model
    if section.tuning == "full":
        half = section.dtype != "float32"  # autocast keeps a copy of every matrix
        return sum(p.numel() * (6 if half and p.ndim > 1 else 4) for p in model.parameters())
    ends = {
        id(part.weight)
        for part in (model.get_input_embeddings(), model.get_output_embeddings())
        if part is not None
    }
    share = _QUANTIZED[section.quantize]

    def size(parameter: nn.Parameter) -> float:
        cut = share < 1 and not parameter.requires_grad and parameter.ndim == 2
        return (
            parameter.numel() * 4 * share if cut and id(parameter) not in ends else parameter.nbytes
        )

    return round(sum(size(p) for p in model.parameters()))


# The estimate.


@dataclass(frozen=True)
class MemoryNeed:
    """What one update of a stage takes at its highest, bytes by part."""

    parts: Mapping[str, int]
    size: PassSize
    parameters: int

    @property
    def total(self) -> int:
        """Bytes, this process included."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {amount / 1e9:.2f}" for name, amount in self.parts.items())
        return f"{self.total / 1e9:.2f} GB ({shown})"


def estimate_memory(
    stage: TrainingStage, model: DryModel, sizes: RowSizes, size: PassSize, process: int
) -> MemoryNeed:
    """The highest memory of one update; docs/performance.md says how far off it is.

    Args:
        size: of the largest pass.
        process: bytes that are taken before the weights.

    Raises:
        Exception: as ``DryModel.keep``.
    """
    kept = model.keep(size.tokens, packed=sizes.packed)
    per_row = kept.total
    if stage.context.recipe.model.gradient_checkpointing:
        entrance = size.tokens * model.width * model.precision.itemsize
        per_row = model.layers * entrance + kept.total // model.layers
    if stage.context.ranks.device.type == "cpu":
        per_row = round(FRAGMENTED[stage.context.recipe.model.tuning] * per_row)
    copies = 1 if stage.needs.reference is not None else 0
    optimizer = model.trained * 4 * (3 + copies)
    work = 3 * kept.largest * size.rows + 4 * model.largest_trained
    parts = {
        "process": process,
        "weights": model.weight_bytes,
        "gradients and AdamW": optimizer,
        "activations": per_row * size.rows,
        "loss head": _estimate_head(stage, model, size.rows * sizes.answers),
        "work space": work,
    }
    return MemoryNeed(parts, size, model.parameters)


def _estimate_head(stage: TrainingStage, model: DryModel, answers: int) -> int:
    """Logits that exist at once, with what is made of them.

    Args:
        answers: of a pass.
    """
    trie = stage.context.trie.to("cpu")
    vocabulary = int(inner_config(model.model).get_text_config().vocab_size)
    layers = 1 + stage.needs.hidden_states
    if not stage.method.legal_only(stage.options):
        logits = min(answers * trie.max_length * vocabulary, max(CHUNK, vocabulary))
        return 3 * 4 * logits * layers
    legal, active = _measure_branching(trie)
    logits = math.ceil(answers * active) * legal
    return 4 * 4 * logits * layers + 2 * 4 * legal * model.width


def _measure_branching(trie: Trie) -> tuple[int, float]:
    """Distinct tokens behind branching nodes, and branching positions of an entry on average."""
    fan_N = trie.fan_out(torch.arange(trie.n_nodes))
    tokens = trie.edge_token_E[torch.repeat_interleave(fan_N > 1, fan_N)]
    leaf_A = torch.arange(trie.n_leaves)[:: -(-trie.n_leaves // _LOOKED_AT)]
    node_AT, _, _ = paths(trie, leaf_A)
    branching_AT = (trie.fan_out(node_AT.clamp_min(0)) > 1) & (node_AT >= 0)
    return len(torch.unique(tokens)), float(branching_AT.sum()) / len(leaf_A)


# The machine's memory, and the choice.


def find_memory(ranks: Ranks, processes: int) -> Memory | None:
    """What this process may have in all, what it has now included.

    Args:
        processes: that share this machine's memory.
    """
    if ranks.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(ranks.device)
        return Memory(free + torch.cuda.memory_reserved(ranks.device), "GPU")
    found = find_free_memory()
    if found is None:
        return None
    here = int(os.environ.get(LOCAL_SIZE, processes)) if ranks.count > 1 else processes
    return Memory(found.free // here + measure_process(ranks), found.source)


def measure_process(ranks: Ranks) -> int:
    """Bytes that are taken before a model is loaded."""
    if ranks.device.type == "cuda":
        return int(torch.cuda.memory_allocated(ranks.device))
    return measure_own_memory() or _PROCESS


def expect_processes(launch: LaunchSection) -> int:
    """How many processes a training command would start on this machine."""
    if launch.processes != "auto":
        return launch.processes
    on_cpu = launch.device == "cpu" or not torch.cuda.is_available()
    return 1 if on_cpu else torch.cuda.device_count()


@dataclass(frozen=True)
class PassChoice:
    """The rows of a stage's forward passes, and what they take beside what there is.

    Attributes:
        whole: the largest pass that the recipe allows.
        need: of the passes that will be computed.
        memory: what there is; None: it cannot be told.
        fitting: rows of a pass that fit: all, else a power of two; 0: none.
        micro_batch: what was chosen, because ``whole`` does not fit; None: nothing was.
    """

    whole: MemoryNeed
    need: MemoryNeed
    memory: Memory | None
    fitting: int
    micro_batch: int | None = None

    @property
    def fits(self) -> bool:
        """Whether an update fits, as far as can be told."""
        return self.memory is None or self.need.total <= self.memory.free


def choose_pass(
    stage: TrainingStage, model: DryModel, sizes: RowSizes, memory: Memory | None, processes: int
) -> PassChoice:
    """The largest pass that fits: the whole batch, else a power of two of rows.

    ``micro_batch`` and ``micro_tokens`` of a recipe are kept, whether they fit or not.

    Raises:
        Exception: as ``DryModel.keep``.
    """
    section, process = stage.section, measure_process(stage.context.ranks)

    def estimate(rows: int) -> MemoryNeed:
        size = PassSize(rows, largest.tokens)
        return estimate_memory(stage, model, sizes, size, process)

    largest = find_largest_pass(section, sizes, processes)
    whole = estimate(largest.rows)
    room = math.inf if memory is None else SHARE * memory.free
    if whole.total <= room:
        return PassChoice(whole, whole, memory, fitting=largest.rows)
    fitting = 1 << max(largest.rows - 1, 1).bit_length() - 1
    while fitting and estimate(fitting).total > room:
        fitting //= 2
    if section.micro_batch or section.micro_tokens or largest.rows == 1:
        return PassChoice(whole, whole, memory, fitting)
    rows = max(fitting, 1)
    return PassChoice(whole, estimate(rows), memory, fitting, micro_batch=rows)


def fit_passes(
    stage: TrainingStage, sizes: RowSizes, processes: int, models: dict[bool, DryModel]
) -> PassChoice | str:
    """``choose_pass`` for this machine; why not, where the backbone's shapes alone do not do.

    Args:
        models: dry models with and without dropout; a missing one is put there.
    """
    dropout = stage.method.log_probs is None
    memory = find_memory(stage.context.ranks, processes)
    try:
        if dropout not in models:
            models[dropout] = build_dry_model(stage.context, dropout=dropout)
        return choose_pass(stage, models[dropout], sizes, memory, processes)
    except Exception as error:  # of a library, on an architecture that needs numbers
        return loading.first_line(error)


def describe_estimate(
    stage: TrainingStage, choice: PassChoice | str, name: str, heading: str
) -> Iterator[str]:
    """The estimate in words, what was chosen, and a warning where an update does not fit."""
    if isinstance(choice, str):
        yield f"{name}: memory: not estimated: the architecture cannot run on shapes ({choice})"
        return
    size, memory = choice.need.size, choice.memory
    room = "" if memory is None else f"; {_show(memory.free)} are free ({memory.source})"
    rows = "1 row" if size.rows == 1 else f"{size.rows} rows"
    yield (
        f"{name}: memory, estimated: {choice.need} at {rows} of {size.tokens} tokens; "
        f"{choice.need.parameters:,} parameters{room}"
    )
    if choice.micro_batch is not None:
        yield f"{name}: {describe_choice(choice)}"
    if line := describe_shortage(stage, choice, heading):
        yield line


def describe_choice(choice: PassChoice) -> str:
    """What was chosen and why, in one line."""
    had = "" if choice.memory is None else f" of {_show(choice.memory.free)}"
    source = "" if choice.memory is None else f" ({choice.memory.source})"
    return (
        f"micro_batch = {choice.micro_batch} was chosen: an update takes about "
        f"{_show(choice.need.total)}{had}{source}, with all {choice.whole.size.rows} rows in one "
        f"pass {_show(choice.whole.total)}; train.micro_batch = {choice.whole.size.rows} would "
        "insist on them"
    )


def describe_shortage(stage: TrainingStage, choice: PassChoice, heading: str) -> str | None:
    """A warning that an update will not fit, with what to set; None: it fits."""
    memory, need = choice.memory, choice.need
    if memory is None or choice.fits:
        return None
    if choice.fitting and stage.section.micro_tokens is not None:
        remedy = f"train.micro_tokens = {choice.fitting * need.size.tokens}"
    elif choice.fitting:
        remedy = f"train.micro_batch = {choice.fitting}"
    else:
        remedy = _suggest_less(stage)
    had = f"{_show(memory.free)} are free ({memory.source})"
    return f"warning: {heading} an update takes about {_show(need.total)}, {had}; try {remedy}"


def _suggest_less(stage: TrainingStage) -> str:
    """What makes less of a single row, and of what does not depend on rows."""
    model = stage.context.recipe.model
    ways = []
    if model.tuning == "full" and model.backbone != "scratch":
        ways.append('model.tuning = "lora"')
    if not model.gradient_checkpointing:
        ways.append("model.gradient_checkpointing = true")
    ways.append("a lower prompt.max_tokens or data.history")
    return ", ".join(ways)


def _show(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
