"""What a message recommends is accepted when it is followed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import RecipeError

LOG: dict[str, Any] = {"data": {"format": "amazon2018", "reviews": "r", "metadata": "m"}}
IDS: dict[str, Any] = {"data": {"format": "semantic-ids", "reviews": "r", "index": "i"}}
ORDER: dict[str, Any] = {
    "data": {"format": "interactions", "reviews": "r", "columns": {"timestamp": False}}
}
WINDOWS: dict[str, Any] = {
    "data": {"format": "msl-windows", "metadata": "m", "splits": {"train": "a", "test": "b"}}
}
PAIRS: dict[str, Any] = {
    "data": {"format": "rank-pairs", "split": "given", "splits": {"train": "a", "test": "b"}},
    "prompt": {"task": "rank-pair", "template": "games"},
    "train": {"select": "auc"},
}
RANKED: dict[str, Any] = {**PAIRS, **LOG}  # the task over data of one's own


def problems(folder: Path, table: dict[str, Any], *overrides: str) -> list[str]:
    path = folder / "r.toml"
    path.write_text(tomli_w.dumps(table))
    try:
        read_recipe(str(path), overrides)
    except RecipeError as error:
        return str(error).split("\n  ")[1:]
    return []


# a recipe, what is wrong with it, words of the message, and each advice as overrides
CASES: dict[str, tuple[dict[str, Any], list[str], str, list[list[str]]]] = {
    "given semantic IDs": (
        IDS,
        ["data.split=given"],
        'format "semantic-ids" needs split = "leave-one-out" or "few-shot"',
        [["data.split=leave-one-out"], ["data.split=few-shot"]],
    ),
    "semantic IDs by time": (
        IDS,
        ["data.split=global-time"],
        'use "leave-one-out" or "few-shot"',
        [["data.split=leave-one-out"], ["data.split=few-shot"]],
    ),
    "given in order": (
        ORDER,
        ["data.split=given"],
        'format "interactions" needs split = "leave-one-out" or "few-shot"',
        [["data.split=leave-one-out"], ["data.split=few-shot"]],
    ),
    "given with times": (
        LOG,
        ["data.split=given"],
        'needs split = "leave-one-out", "global-time" or "few-shot"',
        [["data.split=leave-one-out"], ["data.split=global-time"], ["data.split=few-shot"]],
    ),
    "windows are given": (
        WINDOWS,
        [],
        'split = "leave-one-out", the default: format "msl-windows" needs split = "given"',
        [["data.split=given"]],
    ),
    "skip of what is whole": (
        IDS,
        ["data.on_bad_line=skip"],
        'expected "stop"',
        [["data.on_bad_line=stop"]],
    ),
    "equal semantic IDs": (
        IDS,
        ["data.identity=disambiguate"],
        'use "merge"',
        [["data.identity=merge"]],
    ),
    "ratings that are not read": (
        ORDER,
        ["data.min_rating=4"],
        "name the rating column in columns.rating",
        [["data.min_rating=4", "data.columns.rating=stars"]],
    ),
    "quantized scratch": (
        LOG,
        ["model.quantize=8bit"],
        'needs tuning = "lora" and a pretrained backbone',
        [["model.quantize=8bit", "model.tuning=lora", "model.backbone=some/model"]],
    ),
    "adapted scratch": (
        LOG,
        ["model.tuning=lora", "model.quantize=8bit"],
        'use tuning = "full", quantize = "none"',
        [["model.tuning=full", "model.quantize=none"]],
    ),
    "penalised exact search": (
        LOG,
        ["eval.decode.length_penalty=1.0"],
        'use 0, or search = "beam"',
        [
            ["eval.decode.length_penalty=0.0"],
            ["eval.decode.length_penalty=1.0", "eval.decode.search=beam"],
        ],
    ),
    "sequences in a wording": (
        LOG,
        ["sft.train.rows=sequence", "prompt.template=books"],
        'needs prompt.template = "sequence"',
        [["sft.train.rows=sequence", "prompt.template=sequence"]],
    ),
    "nothing selected for pairs": (
        {key: PAIRS[key] for key in ("data", "prompt")},
        [],
        '[train] select is not set, and its default "ndcg" ranks the catalogue: task "rank-pair" '
        'needs select = "auc" or "loss"',
        [["train.select=auc"], ["train.select=loss"]],
    ),
    "pairs without their task": (
        {"data": PAIRS["data"]},
        [],
        'needs [prompt] task = "rank-pair", with a wording such as "games" as its template, and '
        'train.select = "auc" or "loss"',
        [
            ["prompt.task=rank-pair", "prompt.template=games", f"train.select={select}"]
            for select in ("auc", "loss")
        ],
    ),
    "no wording for pairs": (
        PAIRS,
        ["prompt.template=sequence"],
        'needs a wording, such as "games", "movies" or "items"',
        [[f"prompt.template={name}"] for name in ("games", "movies", "items")],
    ),
    "sequences of pairs": (
        PAIRS,
        ["sft.train.rows=sequence"],
        'rows = "sequence": task "rank-pair" needs "window"',
        [["sft.train.rows=window"]],
    ),
    "MSL of pairs": (
        PAIRS,
        ["align.x.method=msl"],
        'needs support = "vocab", which it has not; expected method dmpo, dpo, sdpo or lml',
        [[f"align.x.method={name}"] for name in ("dmpo", "dpo", "sdpo", "lml")],
    ),
    "ILRec of pairs": (
        RANKED,
        ["align.x.method=ilrec", "align.x.support=legal"],
        "expected method dmpo, dpo, sdpo or lml (with negatives = "
        '"uniform", "popularity" or "disliked", but for lml)',
        [
            ["align.x.method=lml"],
            *(
                [f"align.x.method={name}", f"align.x.negatives={draw}"]
                for name in ("dmpo", "dpo", "sdpo")
                for draw in ("uniform", "popularity", "disliked")
            ),
        ],
    ),
    "legal tokens of pairs": (
        PAIRS,
        ["align.dmpo.support=legal"],
        'needs support = "vocab"',
        [["align.dmpo.support=vocab"]],
    ),
    "a model's own negatives of pairs": (
        RANKED,
        ["align.dmpo.negatives=model"],
        "by uniform, popularity, disliked",
        [[f"align.dmpo.negatives={draw}"] for draw in ("uniform", "popularity", "disliked")],
    ),
    "another task to evaluate": (
        PAIRS,
        ["eval.prompt.template=movies"],
        'expected the task that is trained, "rank-pair"; a table of its own does not inherit it',
        [["eval.prompt.template=movies", "eval.prompt.task=rank-pair"]],
    ),
    "AUC of the next item": (
        LOG,
        ["sft.train.select=auc"],
        'needs "ndcg" or "loss"',
        [["sft.train.select=ndcg"], ["sft.train.select=loss"]],
    ),
    "AUC of a conventional model": (
        LOG,
        ["baseline.sasrec.train.select=auc"],
        '[baseline.sasrec.train] select = "auc": task "generate" needs "ndcg" or "loss"',
        [["baseline.sasrec.train.select=ndcg"], ["baseline.sasrec.train.select=loss"]],
    ),
    "packed rows that cannot be masked": (
        LOG,
        ["sft.train.rows=user", "model.attention=flash_attention_2"],
        "expected sdpa or eager",
        [["sft.train.rows=user", f"model.attention={name}"] for name in ("sdpa", "eager")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_advice_that_is_followed_is_accepted(case: str, tmp_path: Path) -> None:
    table, wrong, words, advices = CASES[case]
    (line,) = problems(tmp_path, table, *wrong)
    assert words in line
    for advice in advices:
        assert problems(tmp_path, table, *advice) == [], advice
        for value in (word.partition("=")[2] for word in advice if word not in wrong):
            assert value in line or value in ("some/model", "movies", "stars", "0.0")


def test_a_key_that_nobody_wrote_is_not_named(tmp_path: Path) -> None:
    """Seen: ``[sft.train] select = "ndcg"`` of a recipe without such a table."""
    table = {key: PAIRS[key] for key in ("data", "prompt")}
    (line,) = problems(tmp_path, table, "align.dmpo.k=1", "align.lml={}")
    assert "sft" not in line
    assert re.search(r"\[train\] select is not set", line)
