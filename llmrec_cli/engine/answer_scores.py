"""How likely a policy finds given answers: ``log pi(y | x)``, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmrec_cli.engine.rows import Row
from llmrec_cli.models.base import batches_by_length
from llmrec_cli.models.policy import inference
from llmrec_cli.tensors.preference import score_answers
from llmrec_cli.tensors.trie import Trie
from llmrec_cli.training.collator import Collator, MicroBatch


def log_probs(policy: Any, micro: MicroBatch, *, legal: bool, temperature: float = 1.0) -> Tensor:
    """``log pi(y | x)`` of each answer of a micro-batch, [A], nats, summed over its tokens.

    Args:
        policy: called like ``models.policy.Policy``, with its ``head()``.
        legal: normalised over legal tokens, else over the vocabulary.
        temperature: divides the logits; 1 over the vocabulary.
    """
    batch, head = micro.batch, policy.head()
    return score_answers(
        policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)[0],
        head,
        batch.trie,
        batch.node_P,
        batch.target_P,
        batch.answer_P,
        batch.answers,
        legal=legal,
        temperature=temperature,
    )


def score_candidates(
    policy: Any,
    rows: Sequence[Row],
    trie: Trie,
    *,
    legal: bool,
    temperature: float,
    batch: int,
    device: torch.device,
    advance: Callable[[int], object] = lambda n: None,
) -> NDArray[np.float64]:
    """``log pi`` of each row's target and of its negatives, [rows, 1 + negatives], nats.

    Args:
        policy: called like ``models.policy.Policy``, with its ``head()``.
        rows: windows with one target and equally many negatives.
        batch: rows of a forward pass.
    """
    collate = Collator(trie, cut_forced=legal)
    score_RC = np.empty((len(rows), 1 + (len(rows[0].negatives[0]) if rows else 0)))
    with inference(policy):
        for part in batches_by_length([len(row.prompt) for row in rows], batch):
            micro = collate([rows[at] for at in part]).to(device)
            log_prob_A = log_probs(policy, micro, legal=legal, temperature=temperature)
            score_RC[part] = log_prob_A.double().cpu().numpy().reshape(len(part), -1)
            advance(len(part))
    return score_RC
