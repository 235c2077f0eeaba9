"""Item tasks: what a recipe must have for them, said in one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.errors import RecipeError

RECIPE = """
[data]
format = "amazon2018"
reviews = "a.json"
metadata = "m.json"
fields = "description"
[tokens]
kind = "semantic-id"
vectors = "random"
[prompt]
template = "items"
[sft.item_tasks]
title_to_id = 0.2
id_to_title = 0.2
description_to_id = 0.1
[align.msl]
[align.msl.item_tasks]
title_to_id = 0.5
[align.dmpo]
negatives = "uniform"
"""


def read(tmp_path: Path, *overrides: str, text: str = RECIPE) -> Recipe:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return read_recipe(str(path), overrides)


def test_every_stage_has_shares_of_its_own(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    assert recipe.sft.item_tasks is not None
    assert recipe.sft.item_tasks.shares == {
        "title_to_id": 0.2,
        "id_to_title": 0.2,
        "description_to_id": 0.1,
    }
    shares = {n: a.item_tasks and a.item_tasks.shares for n, a in recipe.align.items()}
    assert shares == {"msl": {"title_to_id": 0.5}, "dmpo": None}
    assert recipe.item_tasks == {"title_to_id", "id_to_title", "description_to_id"}


def test_a_recipe_without_them_records_nothing_of_them(tmp_path: Path) -> None:
    """So that runs of earlier versions go on."""
    recipe = read(tmp_path, text=RECIPE.partition("[sft.item_tasks]")[0] + "[align.msl]\n")
    assert "item_tasks" not in str(recipe.every_value())


REFUSED = {
    "no titles": (
        ["tokens.kind=title"],
        "[sft.item_tasks]: teaches what semantic IDs mean, and items have none, or no titles: "
        'expected [tokens] kind = "semantic-id", or a format of IDs with data.metadata',
    ),
    "no words": (
        ["prompt.template=sequence"],
        '[sft.item_tasks]: prompt.template = "sequence" has no words: expected a wording, such as '
        '"items"',
    ),
    "no descriptions": (
        ["data.fields=['brand']"],
        "[sft.item_tasks] description_to_id: data.fields does not name descriptions: expected "
        'data.fields = ["brand", "description"]',
    ),
    "all": (
        ["sft.item_tasks.title_to_id=0.7"],
        "the shares sum to 1, expected a sum above 0 and at most 0.99: the rest is that of "
        "recommendation rows",
    ),
    "none": (
        ["align.msl.item_tasks.title_to_id=0"],
        "the shares sum to 0, expected a sum above 0 and at most 0.99",
    ),
    "one": (["sft.item_tasks.title_to_id=1"], "[sft.item_tasks] title_to_id = 1: expected"),
    "negative": (["sft.item_tasks.id_to_title=-0.1"], "id_to_title = -0.1: expected"),
    "misspelt": (["sft.item_tasks.title_id=0.1"], "title_id"),
    "titles of a method that knows IDs": (
        ["align.msl.item_tasks.id_to_title=0.1"],
        "[align.msl.item_tasks] id_to_title: msl looks at tokens that continue an ID, and a title "
        "has none; remove the key, or teach titles in [sft.item_tasks]",
    ),
    "preferences": (
        ["align.dmpo.item_tasks.title_to_id=0.1"],
        "[align.dmpo.item_tasks]: dmpo needs more of a row than its answer, and rows of items have "
        "no more; remove the table",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(tmp_path: Path, case: str) -> None:
    overrides, expected = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, *overrides)
    assert expected in str(caught.value)


def test_lml_as_an_alignment_may_teach_titles(tmp_path: Path) -> None:
    recipe = read(tmp_path, "align.lml.item_tasks.id_to_title=0.3")
    assert recipe.align["lml"].item_tasks is not None


def test_pairs_know_no_ids(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'\[sft.item_tasks\]: task "rank-pair" has no IDs'):
        read(
            tmp_path,
            "prompt.task=rank-pair",
            "tokens.kind=title",
            "train.select=auc",
            "align={}",
            text=RECIPE.partition("[align.msl]")[0],
        )
