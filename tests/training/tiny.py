"""A tiny training run on ragged rows, for tests of the loop in one process and in many."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from llmrec_cli.config.training import TrainSection
from llmrec_cli.data.catalog import gather_entries
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Method, Negatives
from llmrec_cli.models.language_model import Policy
from llmrec_cli.models.loading import add_dropout
from llmrec_cli.pipeline.requirements import RankRollouts
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training import checkpoint
from llmrec_cli.training.collator import Collator, Limits
from llmrec_cli.training.dataset import Dataset, Sampler
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.negatives import AddNegatives, NegativeSampler, Users
from llmrec_cli.training.reference import (
    AddReference,
    KeepReference,
    MoveReference,
    Reference,
)
from llmrec_cli.training.rollouts import AddRollouts
from llmrec_cli.training.rows import AnyRow, Row, TextRow
from llmrec_cli.training.trainer import Trainer
from llmrec_cli.utils.progress import Silent

CATALOGUE = [[5, 6, 7, 2], [5, 6, 8, 9, 9, 2], [5, 2], [6, 6, 2], [7, 6, 7, 2], [8, 2], [9, 9, 2]]
METHODS: dict[str, dict[str, Any]] = {
    "lml": {},
    "msl": {"tau": 1.5},
    "ats": {"tau": "ats", "ats_eta": 0.5},
    "bear": {"beams": 2, "lambda": 4.0, "xi": 0.05},  # divided by a sum of weights that differ
    "texts": {},  # LML, with rows whose answers are texts
    "grpo": {"k": 3, "beta": 0.1},
    "sprec": {"refresh": 2, "beta": 1.0},  # with negatives from the catalogue
    "drawn": {"k": 3, "rollouts": "sampled", "objective": "expected", "beta": 0.1},
}
_METHOD_OF = {"ats": "msl", "texts": "lml", "drawn": "grpo"}


def rows(n: int = 22) -> list[Row]:
    """Ragged rows: one to three targets, histories of zero to four items."""
    rng = np.random.default_rng(0)
    made: list[Row] = []
    for _ in range(n):
        history = rng.integers(0, len(CATALOGUE), rng.integers(0, 5))
        prompt = np.array([1, *(t for i in history for t in CATALOGUE[i])], dtype=np.int32)
        made.append(
            Row(
                prompt,
                tuple(rng.integers(0, len(CATALOGUE), rng.integers(1, 4)).tolist()),
                number=len(made),
            )
        )
    return made


def text_rows(first: int) -> list[TextRow]:
    """A few rows whose answers are no items."""
    answers = [[10, 11, 2], [11, 2], [5, 6, 10, 10, 11, 2], [10, 2]]
    prompts = [[1, 7], [1, 8, 9, 9], [1], [1, 6, 6, 5, 7]]
    return [
        TextRow(np.array(prompt, np.int32), np.array(answer, np.int32), first + at)
        for at, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


def job(
    folder: Path,
    method: str = "lml",
    dropout: float = 0.2,
    ranks: Ranks | None = None,
    **section: Any,
) -> Trainer:
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=dropout,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    add_dropout(model, dropout)
    folder.mkdir(parents=True, exist_ok=True)
    found = find_method(_METHOD_OF.get(method, method))
    made: list[AnyRow] = [*rows()]
    made += text_rows(len(made)) if method == "texts" else []
    ranks = ranks or Ranks(Accelerator(cpu=True))
    policy, options = Policy(model), found.options.model_validate(METHODS[method])
    settings = {"epochs": 3, "batch": 8, "learning_rate": 1e-2, "warmup": 2, "save_every": 2}
    sampler = Sampler(len(made), int(section.get("batch", settings["batch"])), 3)
    train_set, valid_set = Dataset(made), Dataset(rows(5))
    if found.needs(options).rollouts:
        train_set = with_rollouts(rows(), "train", sampler, policy, found, options, ranks)
        order = Sampler(5, 5, shuffle=False)
        valid_set = with_rollouts(rows(5), "valid", order, policy, found, options, ranks)
    reference = found.needs(options).reference
    if reference is not None and reference.moves:
        train_set, valid_set = with_moving_reference(folder, sampler, policy, found, options, ranks)
    return Trainer(
        policy=policy,
        method=found,
        options=options,
        trie=build_trie(CATALOGUE),
        train_set=train_set,
        valid_set=valid_set,
        sampler=sampler,
        rank_valid=lambda: {"ndcg@2": float(model.lm_head.weight.detach().abs().sum())},
        section=TrainSection(**{**settings, **section}),
        seed=3,
        folder=folder,
        ranks=ranks,
        progress=Silent(),
    )


def with_rollouts(
    made: list[Row],
    split: str,
    order: Sampler,
    policy: Policy,
    method: Method,
    options: Any,
    ranks: Ranks,
) -> Dataset:
    """Rows with what GRPO needs: the policy's own answers, and their reference."""
    wanted, score = method.needs(options).rollouts, method.log_probs
    assert wanted is not None
    assert score is not None
    trie = build_trie(CATALOGUE)
    context: Any = SimpleNamespace(
        trie=trie,
        catalogue=CATALOGUE,
        encoder=SimpleNamespace(encode=None),
        ranks=ranks,
        leaf_of_item=trie.leaf_of_item_I.numpy(),
    )
    items = trie.item_order_I.numpy()  # one item an entry
    ask = RankRollouts(context, wanted, policy)
    reference = Reference(policy, lambda forward, batch: score(forward, batch, options))
    rollouts = AddRollouts(ask, made, order, items, 3, split)
    return Dataset(made, (rollouts,), (AddReference(reference),))


def with_moving_reference(
    folder: Path, order: Sampler, policy: Policy, method: Method, options: Any, ranks: Ranks
) -> tuple[Dataset, Dataset]:
    """Training and validation rows with what SPRec needs, their negatives drawn uniformly."""
    needs, score, trie = method.needs(options), method.log_probs, build_trie(CATALOGUE)
    assert needs.reference is not None
    assert score is not None
    leaves = gather_entries(
        pd.DataFrame({"count": range(len(CATALOGUE))}), trie.leaf_of_item_I.numpy()
    )
    users = Users({0: "ann"}, {0: frozenset()}, {})
    draw = NegativeSampler(Negatives(k=1, draw="uniform"), leaves, users, 3)
    reference = Reference(policy, lambda forward, batch: score(forward, batch, options))
    move = MoveReference(
        reference,
        needs.reference.moves,
        folder=folder / "reference",
        checkpoints=folder / "checkpoints",
        writes=ranks.is_first,
    )
    collate = Collator(trie, cut_forced=method.legal_only(options), rejected=True)
    keep = KeepReference(reference, collate, Limits(), ranks.device, Silent())
    valid = Dataset(rows(5), (AddNegatives(draw, rows(5), Sampler(5, 5, shuffle=False)), keep))
    valid.complete_rows(ranks.pick_share(valid.rows), 0)
    drawn = AddNegatives(draw, rows(), order)
    return Dataset(rows(), (move, drawn), (AddReference(reference),)), valid


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def final_state(folder: Path) -> dict[str, bytes]:
    newest = checkpoint.Checkpoints(folder / "checkpoints").newest()
    assert newest is not None
    return {p.name: p.read_bytes() for p in newest.folder.iterdir()}
