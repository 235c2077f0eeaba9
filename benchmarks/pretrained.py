"""A pretrained model's cost: an update and an evaluation beside what transformers alone takes.

The model is a Llama of SmolLM2-135M's shape with random weights (fewer layers in CI).  *An update*
is all of it: rows, collation, forward, backward, clipping, optimizer.  Its peer is the bare forward
and backward of transformers (and peft) on as many tokens, without padding, in as many passes.  *An
evaluation* is the exact top 10 of each user; its peer is the prefill of the same prompts.  *Peak
memory* of one update beside TRL's trainers, on the same rows, where trl is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.decoding import titles
from benchmarks.machine import memory_of
from benchmarks.memory import in_fresh_process
from benchmarks.table import Row as Timed
from benchmarks.table import alternate
from llmrec_cli.config.model import Lora, ModelSection
from llmrec_cli.config.training import TrainSection
from llmrec_cli.decoding.search import DecodedLists, DecodeOptions, rank_catalogue, score_all
from llmrec_cli.methods import find_method
from llmrec_cli.models.language_model import Policy
from llmrec_cli.models.loading import add_lora
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.dataset import Dataset, Sampler
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.rows import AnyRow, Row
from llmrec_cli.training.trainer import Trainer, make_optimizer
from llmrec_cli.utils.progress import Silent

Size = Literal["ci", "full"]
Tuning = Literal["lora", "full"]
VOCABULARY, WIDTH, FEED_FORWARD, HEADS, KEY_HEADS = 49_152, 576, 1_536, 9, 3  # SmolLM2-135M
EOS, BEGIN, QUOTE = 1, 0, 2
MICRO_TOKENS = 1_024
K = 10
CHECKED = 2  # users whose lists are held against the scores of all items
TUNINGS: dict[Tuning, str] = {"lora": "LoRA r = 16", "full": "all weights"}
BAR_UPDATE, BAR_PREFILL = 1 / 1.05, 1 / 1.5  # at most 1.05 and 1.5 times the peer's time


@dataclass(frozen=True)
class Shape:
    """How much of a model and how many rows.

    Attributes:
        prompt: tokens of a prompt, at most; at least half of it.
    """

    layers: int
    items: int
    rows: int
    users: int
    prompt: int
    repeats: int


SHAPES: dict[Size, Shape] = {
    "ci": Shape(2, 200, 8, 8, 80, 3),
    "full": Shape(30, 300, 32, 16, 160, 3),
}


def make_model(shape: Shape, tuning: Tuning) -> Any:
    """A Llama with random weights, and a LoRA adapter where ``tuning`` says so."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=shape.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    if tuning == "full":
        return model
    lora = Lora(r=16, alpha=32, dropout=0, targets=("all-linear",))
    return add_lora(model, ModelSection(backbone="random", tuning="lora", lora=lora), [])


def draw_rows(shape: Shape, items: Sequence[Sequence[int]]) -> list[Row]:
    """Prompts of words, each with one target."""
    draw = random.Random(0)
    rows = []
    for number in range(shape.rows):
        length = draw.randint(shape.prompt // 2, shape.prompt)
        prompt = [BEGIN, *(draw.randrange(2, VOCABULARY) for _ in range(length - 1))]
        target = (draw.randrange(len(items)),)
        rows.append(Row(np.array(prompt, dtype=np.int32), target, number=number))
    return rows


def make_trainer(shape: Shape, tuning: Tuning, method: str, folder: Path) -> Trainer:
    """A run over the rows of one update, at a rate that changes no figure."""
    items = titles(shape.items, VOCABULARY)
    rows = draw_rows(shape, items)
    found = find_method(method)
    if found.needs(found.options()).negatives:  # each row's next item, and what a reference said
        rows = [
            replace(row, negatives=(((row.targets[0] + 1) % len(items),),), reference=np.zeros(2))
            for row in rows
        ]
    section = TrainSection(
        batch=len(rows),
        micro_tokens=MICRO_TOKENS,
        learning_rate=1e-12,
        weight_decay=0,
        max_steps=1_000,
        epochs=1_000,
        select="loss",
    )
    return Trainer(
        policy=Policy(make_model(shape, tuning)),
        method=found,
        options=found.options(),
        trie=build_trie(items),
        train_set=Dataset(rows),
        valid_set=Dataset(rows[:1]),
        sampler=Sampler(len(rows), len(rows)),
        rank_valid=dict,
        section=section,
        seed=0,
        folder=folder,
        ranks=Ranks(Accelerator(cpu=True)),
        progress=Silent(),
    )


class Update:
    """One update of a trainer, which may be run again and again."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.optimizer = make_optimizer(trainer.policy, trainer.section)

    def __call__(self) -> float:
        """The loss before the update."""
        return float(self.trainer.run_update(self.trainer.loss, self.optimizer)["loss"])


def rows(size: Size) -> Iterator[Timed]:
    """An update of each kind, an evaluation, and memory beside TRL."""
    shape = SHAPES[size]
    for tuning in TUNINGS:
        yield _update_row(shape, tuning, BAR_UPDATE if size == "full" else None)
    bar = BAR_PREFILL if size == "full" else None
    yield _evaluation_row(shape, bar)
    yield _evaluation_row(shape, bar, instructed=True)
    if importlib.util.find_spec("trl"):
        yield _memory_row(size, "lml", "SFTTrainer")
        yield _memory_row(size, "dpo", "DPOTrainer")


def _update_row(shape: Shape, tuning: Tuning, bar: float | None) -> Timed:
    items = titles(shape.items, VOCABULARY)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(shape, tuning, "lml", Path(folder))
        update = Update(trainer)
        # What a model must see of a row: the last token of an answer is only predicted.
        sizes = [
            [len(row.prompt) + len(items[row.targets[0]]) - 1 for row in map(_as_row, own.rows)]
            for own in trainer.loader.load_update(0).passes
        ]
        theirs, ours = alternate(
            partial(_run_bare, trainer.policy.model, sizes), update, shape.repeats
        )
        plain = _compute_plain_loss(trainer, items)
        agrees = abs(update() - plain) <= 1e-4 * plain
    return Timed(
        f"an update, SmolLM2's shape, {TUNINGS[tuning]}",
        "bare forward and backward",
        theirs,
        ours,
        agrees,
        bar,
        f"{sum(map(sum, sizes)):,} tokens, {len(sizes)} passes, {shape.layers} layers",
    )


def _as_row(row: AnyRow) -> Row:
    if isinstance(row, Row):
        return row
    raise TypeError("rows of the rank-pair task")


def _run_bare(model: Any, sizes: Sequence[Sequence[int]]) -> None:
    """Forward and backward of transformers, labels at every position, no padding."""
    model.train()
    for lengths in sizes:
        ids_BT = torch.randint(2, VOCABULARY, (len(lengths), round(sum(lengths) / len(lengths))))
        model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    model.zero_grad(set_to_none=False)


@torch.no_grad()
def _compute_plain_loss(trainer: Trainer, items: Sequence[Sequence[int]]) -> float:
    """The mean of ``-log p`` over answer tokens, one row at a time."""
    lost, count = 0.0, 0
    for row in map(_as_row, trainer.train_set.rows):
        answer = list(items[row.targets[0]])
        ids_1T = torch.tensor([[*row.prompt.tolist(), *answer]])
        logits_TV = trainer.policy.model(input_ids=ids_1T).logits[0]
        log_prob_TV = logits_TV[len(row.prompt) - 1 : -1].log_softmax(-1)
        lost -= float(log_prob_TV.gather(1, torch.tensor(answer)[:, None]).sum())
        count += len(answer)
    return lost / count


def _evaluation_row(shape: Shape, bar: float | None, instructed: bool = False) -> Timed:
    """The exact top 10 of each user.

    Args:
        instructed: half of the longest prompt is an instruction, the same for all users, and every
            title begins with a quotation mark.
    """
    items = titles(shape.items, VOCABULARY)
    prompts = [row.prompt.tolist() for row in draw_rows(shape, items)][: shape.users]
    if instructed:
        items = [[QUOTE, *item] for item in items]
        shared = shape.prompt // 2 - 1  # the shortest prompt has one token of its own
        prompts = [prompts[0][:shared] + prompt[shared:] for prompt in prompts]
    trie, options = build_trie(items), DecodeOptions(k=K)
    model = make_model(shape, "full").eval()
    with torch.no_grad():  # logits of standard deviation 2, as a trained model's
        model.get_output_embeddings().weight.normal_(std=2 / WIDTH**0.5)
    width = max(map(len, prompts))
    ids_BT = torch.tensor([[EOS] * (width - len(p)) + p for p in prompts])
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    @torch.no_grad()
    def prefill() -> None:
        model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=True, logits_to_keep=1)

    ours: list[DecodedLists] = []
    seconds = alternate(
        prefill, lambda: ours.append(rank_catalogue(model, trie, prompts, options)), shape.repeats
    )
    true_BK = score_all(model, trie, prompts[:CHECKED], options).topk(K).indices
    agrees = bool((ours[-1].leaf_BK[:CHECKED] == true_BK).all()) and ours[-1].proven
    fed = _count_tokens(model, lambda: rank_catalogue(model, trie, prompts, options))
    what = (
        f"{shape.users} users, {shape.items} titles, {shape.layers} layers; prefill "
        f"{ids_BT.numel():,} tokens, ours {sum(fed):,} in {len(fed)} calls"
    )
    name = f"exact top {K}, SmolLM2's shape" + (", after an instruction" if instructed else "")
    return Timed(name, "prefill of transformers", *seconds, agrees, bar, what)


def _count_tokens(model: Any, work: Callable[[], object]) -> list[int]:
    """Tokens of each call of the model's body, padding counted: no clock has a part in them."""
    fed: list[int] = []

    def note(body: object, given: object, named: dict[str, Any]) -> None:
        fed.append(named["input_ids"].numel())

    hook = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    work()
    hook.remove()
    return fed


def _memory_row(size: Size, method: str, trainer: str) -> Timed:
    """LoRA: MB that the first update adds, each in a fresh process; no answers to compare."""
    ours = in_fresh_process(_measure_ours, size, method)
    theirs = in_fresh_process(_measure_trl, size, trainer)
    return Timed(
        f"peak memory of an update, {method}, {TUNINGS['lora']}",
        f"TRL's {trainer}",
        [theirs],
        [ours],
        agrees=True,
        bar=None,
        detail=f"{SHAPES[size].rows} rows, {SHAPES[size].layers} layers",
        unit="MB",
    )


def _measure_ours(size: Size, method: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return memory_of(Update(make_trainer(SHAPES[size], "lora", method, Path(folder))))[1]


def _measure_trl(size: Size, name: str) -> float:
    """One step of a trainer of TRL: as many rows, the same tokens, passes of as many rows."""
    trl, datasets = (importlib.import_module(package) for package in ("trl", "datasets"))
    shape = SHAPES[size]
    items = titles(shape.items, VOCABULARY)
    described = [_describe_for_trl(row, items) for row in draw_rows(shape, items)]
    per_pass = max(1, MICRO_TOKENS // shape.prompt)
    with tempfile.TemporaryDirectory() as folder:
        trainer = getattr(trl, name)(
            model=make_model(shape, "lora"),
            args=getattr(trl, name.replace("Trainer", "Config"))(
                output_dir=folder,
                per_device_train_batch_size=per_pass,
                gradient_accumulation_steps=-(-shape.rows // per_pass),
                max_steps=1,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list(described),
            processing_class=_make_tokenizer(),
        )
        return memory_of(trainer.train)[1]


def _describe_for_trl(row: Row, items: Sequence[Sequence[int]]) -> dict[str, str]:
    def spell(ids: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in ids)

    target = row.targets[0]
    return {
        "prompt": spell(row.prompt.tolist()),
        "completion": " " + spell(items[target]),
        "chosen": " " + spell(items[target]),
        "rejected": " " + spell(items[(target + 1) % len(items)]),
    }


def _make_tokenizer() -> Any:
    """One token a word: ``w17`` is 17."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{token}": token for token in range(VOCABULARY)}, "w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{EOS}", pad_token=f"w{EOS}")
