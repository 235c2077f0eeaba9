"""AUC of the generate task: the target beside one item that the user does not own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from llmrec_cli.config.model import ScratchModel
from llmrec_cli.decoding.ranker import score_candidates
from llmrec_cli.decoding.search import DecodeOptions, score_all
from llmrec_cli.models.language_model import Policy
from llmrec_cli.models.loading import build_scratch
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.rows import Row
from tests.commands import SMALL, llmrec, ok

pytestmark = pytest.mark.slow

CATALOGUE = [[a, b, c, 1] for a in (10, 11) for b in (20, 21, 22) for c in (30, 31)]
SIZES = ScratchModel(hidden=32, layers=2, heads=2, feed_forward=48, dropout=0.0, vocabulary=300)
RUNS = ("baseline-pop", "baseline-sasrec", "baseline-itemknn", "sft")


@pytest.mark.parametrize(
    ("mask", "temperature"), [("before", 1.0), ("before", 0.5), ("after", 1.0)]
)
def test_scores_are_those_of_the_decoder(mask: str, temperature: float) -> None:
    model, _ = build_scratch(SIZES, ["a title"], (), seed=3)
    trie = build_trie(CATALOGUE)
    prompts = [np.array(p, dtype=np.int32) for p in ([0], [0, 10, 20, 30, 1], [0, 11, 22])]
    negatives = [(3, 7), (0, 11), (5, 4)]
    rows = [
        Row(prompt, (target,), negatives=(others,))
        for prompt, target, others in zip(prompts, (1, 2, 6), negatives, strict=True)
    ]

    def scores(asked: list[Row], batch: int) -> np.ndarray:
        return score_candidates(
            Policy(model).eval(),
            asked,
            trie,
            legal=mask == "before",
            temperature=temperature,
            batch=batch,
            device=torch.device("cpu"),
        )

    found = scores(rows, batch=2)
    options = DecodeOptions(k=1, search="all", mask=mask, temperature=temperature)  # type: ignore[arg-type]  # two of its values
    score_BL = score_all(model, trie, [p.tolist() for p in prompts], options).numpy()
    leaf_I = trie.leaf_of_item_I.numpy()
    for row, score_C, score_L in zip(rows, found, score_BL, strict=True):
        asked = leaf_I[[row.targets[0], *row.negatives[0]]]
        np.testing.assert_allclose(score_C, score_L[asked], rtol=1e-4)
    swapped = [replace(rows[0], targets=(3,), negatives=((1, 7),)), *rows[1:]]
    np.testing.assert_allclose(scores(swapped, batch=3)[0, :2], found[0, 1::-1], rtol=1e-4)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("candidates")
    small = [*SMALL, "eval.auc=true"]
    ok(llmrec(folder, "prepare", "quickstart", *small))
    for command in (["baseline", "--model", "sasrec"], ["baseline", "--model", "itemknn"], ["sft"]):
        ok(llmrec(folder, *command, "quickstart", *small))
    runs = [word for run in RUNS for word in ("--run", run)]
    ok(llmrec(folder, "eval", "quickstart", *runs, *small))
    return folder / "runs" / "quickstart"


@pytest.mark.parametrize("run", RUNS)
def test_every_run_is_asked_the_same_pairs(evaluated: Path, run: str) -> None:
    pairs = pd.read_parquet(evaluated / run / "pairs.parquet")
    first = pd.read_parquet(evaluated / RUNS[0] / "pairs.parquet")
    assert len(pairs) == 60
    pd.testing.assert_frame_equal(
        pairs[["row", "target", "negative"]], first[["row", "target", "negative"]]
    )
    owned = {
        user: {item for part in rows.history for item in part} | set(rows.target)
        for user, rows in pd.concat(
            pd.read_parquet(evaluated / f"prepared/{split}.parquet")
            for split in ("train", "valid", "test")
        ).groupby("user_id")
    }
    assert not any(n in owned[u] for u, n in zip(pairs["user_id"], pairs["negative"], strict=True))


@pytest.mark.parametrize("run", RUNS)
def test_the_report_has_the_share_of_users_whose_target_scores_higher(
    evaluated: Path, run: str
) -> None:
    report = json.loads((evaluated / run / "report.json").read_text())
    pairs = pd.read_parquet(evaluated / run / "pairs.parquet")
    gap = pairs["chosen_score"] - pairs["rejected_score"]
    share = float(((gap > 0) + 0.5 * (gap == 0)).mean())  # one row a user here
    assert report["auc"]["metrics"]["auc_paired"]["mean"] == pytest.approx(share)
    assert 0 <= report["auc"]["metrics"]["auc_pooled"]["low"] <= 1
    assert "first_shown" not in report["auc"]


def test_popularity_scores_a_candidate_by_its_training_interactions(evaluated: Path) -> None:
    pairs = pd.read_parquet(evaluated / "baseline-pop" / "pairs.parquet")
    count = pd.read_parquet(evaluated / "prepared" / "items.parquet")["count"]
    assert pairs["chosen_score"].tolist() == count[pairs["target"]].tolist()


def test_without_the_key_nothing_is_scored(evaluated: Path) -> None:
    ok(
        llmrec(
            evaluated.parents[1], "eval", "quickstart", "--run", "sft", "--split", "valid", *SMALL
        )
    )
    assert not (evaluated / "sft" / "pairs-valid.parquet").exists()
