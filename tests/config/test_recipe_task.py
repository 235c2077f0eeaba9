"""What a task rules out is said in one line each, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import RecipeError

PAIRS = """
[data]
format = "rank-pairs"
split = "given"
splits = { train = "a.json", test = "b.json" }
[prompt]
task = "rank-pair"
template = "games"
[train]
select = "auc"
[align.dmpo]
[align.lml]
"""
OWN = PAIRS.replace(
    'format = "rank-pairs"\nsplit = "given"\nsplits = { train = "a.json", test = "b.json" }',
    'format = "amazon2018"\nreviews = "a.json"',
).replace("[align.dmpo]", '[align.dmpo]\nnegatives = "uniform"')


def load(tmp_path: Path, text: str, *overrides: str) -> str:
    """The problems of a recipe; empty for a good one."""
    path = tmp_path / "r.toml"
    path.write_text(text)
    try:
        read_recipe(str(path), overrides)
    except RecipeError as error:
        return str(error).partition("\n  ")[2]
    return ""


@pytest.mark.parametrize("text", [PAIRS, OWN])
def test_a_good_recipe_loads(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == ""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["prompt.task=generate", "train.select=loss"],
            '[data] format = "rank-pairs": needs [prompt] task = "rank-pair"',
        ),
        (
            ["sft.train.select=ndcg"],
            '[sft.train] select = "ndcg": task "rank-pair" needs "auc" or "loss"',
        ),
        (
            ["prompt.template=sequence"],
            '[prompt] template = "sequence": task "rank-pair" needs a wording, such as "games", '
            '"movies" or "items"',
        ),
        (
            ["align.dmpo.support=legal"],
            '[align.dmpo] method = "dmpo": looks at the catalogue\'s tokens only; task "rank-pair" '
            'ranks texts and needs support = "vocab"',
        ),
        (
            ["align.msl.tau=1.0"],
            '[align.msl] method = "msl": looks at the catalogue\'s tokens only; task "rank-pair" '
            'ranks texts and needs support = "vocab"',
        ),
        (
            ["eval.prompt.template=movies"],
            '[eval.prompt] task = "generate": expected the task that is trained, "rank-pair"',
        ),
        (
            ["baseline.sasrec.hidden=32"],
            '[baseline.sasrec]: ranks the catalogue; task "rank-pair" knows pop only',
        ),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, overrides: list[str], words: str) -> None:
    problems = load(tmp_path, PAIRS, *overrides)
    assert words in problems
    assert len(problems.splitlines()) == 1


def test_sequences_are_refused(tmp_path: Path) -> None:
    assert 'rows = "sequence"' in load(tmp_path, PAIRS, "train.rows=sequence")


def test_own_data_draw_without_a_model(tmp_path: Path) -> None:
    assert load(tmp_path, OWN, "align.dmpo.negatives=model") == (
        '[align.dmpo] negatives = "model": task "rank-pair" draws the other candidate without '
        "asking a model, by uniform, popularity, disliked"
    )
    assert load(tmp_path, OWN, "align.dmpo.negatives=popularity") == ""


def test_self_play_has_no_pairs(tmp_path: Path) -> None:
    """Also where the files bring the rejected answers: they are not the model's."""
    found = load(tmp_path, PAIRS.replace("[align.dmpo]", "[align.sprec]")).strip()
    assert found.startswith(
        '[align.sprec] method = "sprec": task "rank-pair" asks no model for rejected answers; '
    )


def test_semantic_ids_have_no_titles_to_rank(tmp_path: Path) -> None:
    found = load(tmp_path, OWN, "data.format=semantic-ids", "data.index=i.json")
    assert found == '[data] format = "semantic-ids": task "rank-pair" ranks titles; it has none'


def test_the_next_item_has_no_pairs_to_select_by(tmp_path: Path) -> None:
    text = '[data]\nformat = "amazon2018"\nreviews = "a.json"\n[align.lml]\n'
    assert load(tmp_path, text) == ""
    problems = load(tmp_path, text, "train.select=auc").splitlines()
    assert problems[0] == '[sft.train] select = "auc": task "generate" needs "ndcg" or "loss"'
    assert len(problems) == 2


def test_several_problems_are_said_at_once(tmp_path: Path) -> None:
    found = load(tmp_path, PAIRS, "prompt.template=sequence", "align.dmpo.support=legal")
    assert len(found.splitlines()) == 2


def test_paths_of_other_data_are_anchored_too(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    text = OWN + (
        '[eval.data]\nformat = "amazon2018"\nreviews = "./other.json"\n'
        '[eval.prompt]\ntask = "rank-pair"\ntemplate = "./own.toml"\n'
    )
    path = tmp_path / "sub" / "r.toml"
    path.write_text(text)
    recipe = read_recipe(str(path))
    assert recipe.eval.data is not None
    assert recipe.eval.data.reviews == (str(tmp_path / "sub" / "other.json"),)
    assert recipe.prompt_for_eval.template == str(tmp_path / "sub" / "own.toml")
    assert recipe.prepared_for_eval == recipe.folder / "prepared-eval"
    plain = read_recipe(str(path), ["eval.data.reviews=x.json"])
    assert plain.eval.data is not None
    assert plain.eval.data.reviews == ("x.json",)


GENERATE = """
[data]
format = "amazon2018"
reviews = "a.json"
[prompt]
template = "books"
[model]
attention = "flash_attention_2"
[align.msl]
[align.dmpo]
"""


def test_packed_rows_need_an_attention_that_takes_their_mask(tmp_path: Path) -> None:
    ignored = 'model.attention = "flash_attention_2" cannot mask them, expected sdpa or eager'
    packs = "packs several answers into a row: "
    assert load(tmp_path, GENERATE).strip() == f"[align.dmpo] {packs}{ignored}"
    assert load(tmp_path, GENERATE, "model.attention=sdpa") == ""
    users = load(tmp_path, GENERATE, "sft.train.rows=user").splitlines()
    assert [line.split("]")[0].strip() for line in users] == ["[sft.train", "[align.dmpo"]


def test_rollouts_are_packed_too(tmp_path: Path) -> None:
    grpo = GENERATE.replace("[align.dmpo]", "[align.grpo]")
    assert load(tmp_path, grpo).strip().startswith("[align.grpo] packs several answers into a row")


def test_a_loss_that_measures_nothing_chooses_no_checkpoint(tmp_path: Path) -> None:
    grpo = GENERATE.replace("[align.dmpo]", "[align.grpo]") + "train = { select = 'loss' }\n"
    words = "model.attention=sdpa"
    problem = load(tmp_path, grpo, words).strip()
    assert problem.startswith('[align.grpo.train] select = "loss": the loss of grpo is no lower')
    assert load(tmp_path, grpo, words, "align.grpo.objective=expected") == ""
    assert load(tmp_path, grpo, words, "align.grpo.train.select=ndcg") == ""


CHAT = OWN.replace('task = "rank-pair"\ntemplate = "games"', 'template = "items"\nchat = true')


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["prompt.template=sequence"],
            'chat = true, and template = "sequence", which has no words',
        ),
        (["model.backbone=scratch"], '[prompt] chat = true: backbone = "scratch" has no chat'),
        (
            [
                "model.backbone=scratch",
                "prompt.chat=false",
                "eval.prompt.chat=true",
                "eval.prompt.template=games",
            ],
            '[eval.prompt] chat = true: backbone = "scratch" has no chat template',
        ),
    ],
)
def test_chats_need_words_and_a_pretrained_model(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    good = CHAT.replace('select = "auc"', "").replace("[align.dmpo]", "[align.msl]")
    good = good.partition("[align.msl]")[0]
    assert load(tmp_path, good, "model.backbone=acme/chat") == ""
    assert words in load(tmp_path, good, "model.backbone=acme/chat", *overrides)
