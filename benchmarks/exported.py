"""Lists of an exported run, computed with plain transformers and peft, beside the run's own.

    python -m benchmarks.exported --run runs/NAME/sft --users 100 [--merge] [--base MODEL]

The run is exported, and the export is loaded as anybody would load it.  Every item's tokens are
scored behind the prompt, so no search takes part.  The lists are held against the kept
``predictions.parquet`` of the run's evaluation, whole catalogue, history kept.  The exit code is 1
if one list differs where its scores do not tie.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from llmrec_cli.serving.card import Wanted
from llmrec_cli.serving.export import export
from llmrec_cli.serving.exported.rank import Catalogue, load
from llmrec_cli.utils.progress import Silent

AT_ONCE = 32  # prefixes read together
TIE = 1e-3  # log-probability: entries closer than this may change places
Tokens = tuple[int, ...]


def legal_tokens(leaves: Sequence[Tokens]) -> dict[Tokens, list[int]]:
    """What may follow each prefix of an item."""
    legal: dict[Tokens, set[int]] = {}
    for leaf in leaves:
        for place, token in enumerate(leaf):
            legal.setdefault(leaf[:place], set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in legal.items()}


def score_items(
    model: Any, prompt: list[int], leaves: Sequence[Tokens], decode: dict[str, Any]
) -> dict[Tokens, float]:
    """The log-probability of each item behind a prompt, from plain forward passes."""
    legal = legal_tokens(leaves)
    masked = decode["mask"] == "before"  # where one token alone is legal, it is certain
    read = [prefix for prefix, tokens in legal.items() if not masked or len(tokens) > 1]
    logs: dict[Tokens, dict[int, float]] = {}
    for prefix, logits_V in read_behind(model, prompt, read):
        tokens = legal[prefix]
        if masked:
            log_A = torch.log_softmax(logits_V[tokens] / decode["temperature"], 0)
        else:
            log_A = torch.log_softmax(logits_V, 0)[tokens]
        logs[prefix] = dict(zip(tokens, log_A.tolist(), strict=True))
    return {
        leaf: sum(
            logs[leaf[:place]][token] for place, token in enumerate(leaf) if leaf[:place] in logs
        )
        for leaf in leaves
    }


@torch.no_grad()
def read_behind(
    model: Any, prompt: list[int], prefixes: Sequence[Tokens]
) -> Iterator[tuple[Tokens, torch.Tensor]]:
    """Each prefix with the logits [V] of what follows it behind the prompt, which is read once."""
    opening = model(input_ids=torch.tensor([prompt]), use_cache=True)
    by_length = sorted(prefixes, key=len)
    for start in range(0, len(by_length), AT_ONCE):
        part = [prefix for prefix in by_length[start : start + AT_ONCE] if prefix]
        if start == 0 and not by_length[0]:
            yield (), opening.logits[0, -1].float()
        if not part:
            continue
        cache = copy.deepcopy(opening.past_key_values)
        cache.batch_repeat_interleave(len(part))
        width = len(part[-1])
        rows = [[*prefix, *[0] * (width - len(prefix))] for prefix in part]
        logits = model(input_ids=torch.tensor(rows), past_key_values=cache).logits
        for row, prefix in enumerate(part):
            yield prefix, logits[row, len(prefix) - 1].float()


def compare_lists(
    folder: Path, base: str | None, run: Path, users: int
) -> tuple[int, int, int, float]:
    """Equal lists, lists that differ in ties alone, other lists, and the largest difference.

    The difference is between the log-probabilities of the same place of both lists.
    """
    model, tokenizer = load(folder, base)
    catalogue = Catalogue.read(folder)
    of_id = {item["item_id"]: item for item in catalogue.items}
    ids = pd.read_parquet(run.parent / "prepared/items.parquet")["item_id"].tolist()
    kept = pd.read_parquet(run / "predictions.parquet").head(users)
    leaves = list(dict.fromkeys(tuple(item["tokens"]) for item in catalogue.items))
    same = ties = other = 0
    largest = 0.0
    for history, ranked, kept_scores in zip(
        kept["history"], kept["ranked"], kept["scores"], strict=True
    ):
        told = [of_id[ids[item]] for item in history]
        score_of = score_items(
            model, catalogue.prompt_ids(tokenizer, told), leaves, catalogue.decode
        )
        best = sorted(leaves, key=score_of.__getitem__, reverse=True)[: len(ranked)]
        own = [tuple(of_id[ids[item]]["tokens"]) for item in ranked]
        gap = max(abs(score_of[a] - score_of[b]) for a, b in zip(own, best, strict=True))
        off = [abs(score_of[a] - float(b)) for a, b in zip(own, kept_scores, strict=True)]
        largest = max([largest, *off])
        same += own == best
        ties += own != best and gap < TIE
        other += own != best and gap >= TIE
    return same, ties, other, largest


def main() -> None:
    """One line for the run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--run", type=Path, required=True, help="folder of an evaluated run")
    parser.add_argument("--users", type=int, default=100, help="rows of its predictions")
    parser.add_argument("--merge", action="store_true", help="merge the adapter")
    parser.add_argument("--base", help="model below an adapter, if not the recorded one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "exported")
        export(asked.run, folder, Wanted(merge=asked.merge), progress=Silent())
        start = time.perf_counter()
        same, ties, other, largest = compare_lists(folder, asked.base, asked.run, asked.users)
        seconds = time.perf_counter() - start
    print(
        f"{asked.run}: {same} of {same + ties + other} lists are equal, {ties} differ within ties,"
        f" {other} otherwise; scores differ by at most {largest:.1e}; {seconds:.0f} s"
    )
    raise SystemExit(other > 0)


if __name__ == "__main__":
    main()
