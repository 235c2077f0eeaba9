"""Guided exact search beside the same search without its guide.

The rows of ``make benchmark`` are the worst case: a random model and a random guide that know
nothing of each other, so that the bound of a prefix is loose.  On a finished experiment:

    python -m benchmarks.guided --run runs/NAME/align-msl+baseline-itemknn --rows 1000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.decoding import SHAPES, Shape, Size, model_of, prompts_of, semantic_ids, titles
from benchmarks.machine import as_line, machine
from benchmarks.table import Row, alternate
from llmrec_cli.data.histories import read_histories
from llmrec_cli.decoding.guide import Guide
from llmrec_cli.decoding.ranker import GuidedRanker
from llmrec_cli.decoding.search import DecodedLists, DecodeOptions, rank_catalogue, score_all
from llmrec_cli.pipeline.setup import choose_rows
from llmrec_cli.serving.recommender import Recommender
from llmrec_cli.tensors.trie import build_trie

K = 10
WEIGHTS = (0.1, 0.5, 1.0, 4.0)
BAR = 1 / 1.3  # at most 1.3 times the time without a guide, at 10,000 items
CHECKED = 2  # users whose lists are held against the scores of all items
SPREAD = 2.0  # standard deviation of the guide's scores
MILLION = 1_000_000


def _draw_guide(users: int, leaves: int) -> Tensor:
    """log P_guide, [users, leaves]: normal scores that know nothing of the model."""
    generator = torch.Generator().manual_seed(1)
    return (SPREAD * torch.randn(users, leaves, generator=generator)).log_softmax(1)


def _random_row(
    name: str, shape: Shape, catalogue: list[list[int]], weight: float, *, bar: float | None
) -> Row:
    model, prompts, trie = model_of(shape), prompts_of(shape), build_trie(catalogue)
    log_prob_BL = _draw_guide(len(prompts), trie.n_leaves)
    guide = Guide(lambda rows: log_prob_BL[list(rows)], weight)
    options = DecodeOptions(k=K)
    joined: list[DecodedLists] = []
    seconds = alternate(
        lambda: rank_catalogue(model, trie, prompts, options),
        lambda: joined.append(rank_catalogue(model, trie, prompts, options, guide=guide)),
        shape.repeats,
    )
    agrees = joined[-1].proven
    if len(catalogue) < MILLION:  # to score each of a million takes hours
        score_BL = score_all(model, trie, prompts[:CHECKED], options)
        true_BK = score_BL.add(log_prob_BL[:CHECKED], alpha=weight).topk(K).indices
        agrees = agrees and bool((joined[-1].leaf_BK[:CHECKED] == true_BK).all())
    return Row(
        f"guided exact top {K}, {len(catalogue):,} {name}, weight {weight:g}, random guide",
        "without the guide",
        *seconds,
        agrees,
        bar,
    )


def rows(size: Size) -> Iterator[Row]:
    """A random guide over random catalogues."""
    shape = SHAPES[size]
    if size == "ci":
        yield _random_row("semantic IDs", shape, semantic_ids(shape.items), 1.0, bar=None)
        yield _random_row("titles", shape, titles(shape.items, shape.vocabulary), 1.0, bar=None)
        return
    for weight in (0.1, 1.0):
        yield _random_row("semantic IDs", shape, semantic_ids(10_000), weight, bar=BAR)
        yield _random_row("titles", shape, titles(10_000, shape.vocabulary), weight, bar=BAR)
    few = replace(shape, users=4)
    yield _random_row("semantic IDs", few, semantic_ids(MILLION), 1.0, bar=None)


def measure_run(folder: Path, n_rows: int, repeats: int) -> Iterator[tuple[float, Row]]:
    """A finished guided run beside its language model, each weight over the same test rows."""
    opened = Recommender.load(folder, device="cpu")
    ranker = opened.ranker
    if not isinstance(ranker, GuidedRanker):
        raise SystemExit(f"{folder}: expected a guided run, such as align-msl+baseline-itemknn")
    histories = read_histories(choose_rows(opened.context.prepared.split("test"), n_rows))
    alone = ranker.language
    for weight in WEIGHTS:
        guided = replace(ranker, weight=weight)
        seconds = alternate(
            partial(alone.rank, histories, K), partial(guided.rank, histories, K), repeats
        )
        name = f"{folder.name}, {opened.leaves.n_leaves:,} entries, {len(histories):,} rows"
        yield weight, Row(name, "without the guide", *seconds, agrees=True, bar=BAR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a finished run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guided", description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args(arguments)
    print(as_line(machine()))
    print("\n| run | weight | without the guide, s | with it, s | times as long | spread |")
    print("|---|---|---|---|---|---|", flush=True)
    for weight, row in measure_run(asked.run, asked.rows, asked.repeats):
        longer = [1 / ratio for ratio in row.ratios]
        print(
            f"| {row.name} | {weight:g} | {median(row.peer_seconds):.2f} | "
            f"{median(row.our_seconds):.2f} | {median(longer):.2f} | "
            f"{min(longer):.2f}..{max(longer):.2f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
