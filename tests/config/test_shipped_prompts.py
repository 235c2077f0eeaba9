"""Every shipped recipe, on small data in its format: each item of a history is in the prompt.

The recipe's own ``[prompt]`` is rendered by the code that trains and evaluates; a tokenizer of
ours stands in for the hub's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
from transformers import LlamaConfig

from llmrec_cli.config.loader import list_shipped_names, read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.prompts import Question, load_rank_template, load_template, template_names
from llmrec_cli.data.schema import HISTORY, ITEM_ID, TARGET, TOKENS
from llmrec_cli.models.tokenizer import train_tokenizer
from llmrec_cli.pipeline.plan import check_plan, plan_run
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.setup import (
    CatalogueContext,
    build_training_rows,
    build_window_rows,
    open_context,
)
from llmrec_cli.pipeline.tokenize import tokenize
from llmrec_cli.runs.run import sft_run
from llmrec_cli.tasks.base import load_operations
from llmrec_cli.tasks.rank_pair_operations import choose_pairs, make_pair_encoder, parse_pairs
from llmrec_cli.training.rows import Row, TextRow, as_windows
from llmrec_cli.utils.progress import Silent

pytestmark = pytest.mark.slow  # prompts of whole data sets

ITEMS = 16
TITLES = [f"Kite {chr(65 + i)}, no. {i:02} & <a_{i}>" for i in range(ITEMS)]
INDEX = [[f"<a_{i % 4}>", f"<b_{i // 4}>", f"<c_{i}>"] for i in range(ITEMS)]
USERS = [[(u * 5 + t * 3) % ITEMS for t in range(9)] for u in range(14)]
START = 1_680_000_000  # of 2023: later than any recipe's data.start
Files = dict[str, str]  # key of [data] -> path


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def lines(records: Sequence[object], spell: Callable[[object], str] = json.dumps) -> str:
    return "".join(spell(record) + "\n" for record in records)


def bought() -> Iterator[tuple[str, str, int]]:
    """User, item and second; a user's first purchase is years before the others'."""
    for user, items in enumerate(USERS):
        for place, item in enumerate(items):
            yield f"U{user}", f"I{item:02}", START + 100_000 * place + user


def amazon(folder: Path, layout: str) -> Files:
    newest = layout == "amazon2023"
    names = ("user_id", "parent_asin", "rating", "timestamp")
    if not newest:
        names = ("reviewerID", "asin", "overall", "unixReviewTime")
    reviews = [
        dict(zip(names, (user, item, 5.0, second * 1000 if newest else second), strict=True))
        for user, item, second in bought()
    ]
    meta = [
        {names[1]: f"I{i:02}", "title": title, "description": [f"A toy: {title}"]}
        for i, title in enumerate(TITLES)
    ]
    spell = repr if layout == "amazon2014" else json.dumps
    return {
        "reviews": write(folder / f"{layout}.reviews.json", lines(reviews)),
        "metadata": write(folder / f"{layout}.meta.json", lines(meta, spell)),
    }


def semantic_ids(folder: Path, _: str) -> Files:
    users = {f"U{user}": [f"I{item:02}" for item in items] for user, items in enumerate(USERS)}
    index = {f"I{item:02}": tokens for item, tokens in enumerate(INDEX)}
    return {
        "reviews": write(folder / "inter.json", json.dumps(users)),
        "index": write(folder / "index.json", json.dumps(index)),
    }


def sequences(folder: Path, _: str) -> Files:
    users = [f"U{user} " + " ".join(f"I{i:02}" for i in items) for user, items in enumerate(USERS)]
    titles = [f"I{item:02} {title}" for item, title in enumerate(TITLES)]
    return {
        "reviews": write(folder / "users.txt", "\n".join([*users, ""])),
        "metadata": write(folder / "titles.txt", "\n".join([*titles, ""])),
    }


def msl_windows(folder: Path, _: str) -> Files:
    rows = [f'U{user},"{items}",{START + user}\n' for user, items in enumerate(USERS)]
    windows = "user_id,item_ids,timestamp\n" + "".join(rows)
    titles = {str(item): title for item, title in enumerate(TITLES)}
    return {
        "metadata": write(folder / "id2name4Rec.json", json.dumps(titles)),
        "splits.train": write(folder / "train.csv", windows),
        "splits.test": write(folder / "test.csv", windows),
    }


def rank_pairs(folder: Path, _: str) -> Files:
    wording = load_rank_template("games", Path)
    found: Files = {}
    for split, both in (("train", False), ("preference", True), ("valid", True), ("test", True)):
        rows = []
        for *history, liked, one, two in USERS:
            told = tuple(TITLES[item] for item in history)
            for other in (one, two)[: 1 if split == "train" else 2]:
                shown, beside = TITLES[liked], TITLES[other]
                answers = [wording.render_answer(shown, beside)]
                answers += [wording.render_answer(beside, shown)] if both else []
                prompt = wording.render(Question(told, beside, shown))
                output: object = answers if both else answers[0]
                rows.append({"instruction": prompt, "input": "", "output": output})
        found[f"splits.{split}"] = write(folder / f"{split}.json", json.dumps(rows))
    return found


WRITERS: dict[str, Callable[[Path, str], Files]] = {
    "amazon2014": amazon,
    "amazon2018": amazon,
    "amazon2023": amazon,
    "semantic-ids": semantic_ids,
    "sequences": sequences,
    "msl-windows": msl_windows,
    "rank-pairs": rank_pairs,
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands in for the hub: a tokenizer and a configuration, no weights."""
    folder = tmp_path_factory.mktemp("hub") / "base"
    wordings = [load_template(name, Path).render(TITLES) for name in template_names()]
    tokenizer = train_tokenizer(wordings, vocabulary=2000)
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small(name: str, folder: Path, backbone: Path) -> Recipe:
    """A shipped recipe with its own prompts, on small files and a base of this machine."""
    shipped = read_recipe(name)
    words = [f"out={folder / 'runs'}"]
    for table, data in (("data", shipped.data), ("eval.data", shipped.eval.data)):
        if data is not None:
            files = WRITERS[data.format](folder, data.format)
            words += [f"{table}.{key}={path}" for key, path in files.items()]
            words += [f"{table}.k_core=0"] if data.split != "given" else []
            words += [f"{table}.few_shot_users=4"] if data.split == "few-shot" else []
    if shipped.model.backbone != "scratch":
        words += [f"model.backbone={backbone}"]
    if shipped.id_tokens is not None:  # no encoder, and few items
        words += ["tokens.vectors=random", "tokens.codes=4"]
    recipe = read_recipe(name, words)
    assert (recipe.prompt, recipe.eval.prompt) == (shipped.prompt, shipped.eval.prompt)
    return recipe


def spans(prompt: list[Any] | str, names: Sequence[list[Any] | str]) -> bool:
    """Whether the names stand in the prompt, in order and apart."""
    place = 0
    for name in names:
        starts = range(place, len(prompt) - len(name) + 1)
        found = next((at for at in starts if prompt[at : at + len(name)] == name), None)
        if not name or found is None:
            return False
        place = found + len(name)
    return True


def check(
    context: CatalogueContext, recipe: Recipe, prompt: Sequence[int], history: Sequence[int]
) -> None:
    """Refuse a prompt that lacks an item of its history; looks at the files, not at the code."""
    assert len(history) > 0
    tokenizer = context.codec.tokenizer
    numbers = [int(context.prepared.items[ITEM_ID].iloc[item].lstrip("I")) for item in history]
    if recipe.data.format == "semantic-ids":
        ids = [[tokenizer.get_vocab()[token] for token in INDEX[n]] for n in numbers]
        assert spans(list(prompt), ids)
        return
    if recipe.id_tokens is not None:
        index = json.loads((recipe.tokens_folder / "index.json").read_text())
        named = [index[context.prepared.items[ITEM_ID].iloc[item]] for item in history]
        own = [[tokenizer.get_vocab()[token] for token in tokens] for tokens in named]
        assert spans(list(prompt), own)
        return
    assert spans(tokenizer.decode(prompt), [TITLES[number] for number in numbers])


def check_pairs(context: CatalogueContext, recipe: Recipe, template: str) -> None:
    encoder = make_pair_encoder(
        context, recipe.prompt_for_eval if template == "eval" else recipe.prompt
    )
    for split in context.prepared.splits:
        frame = context.prepared.split(split)
        asked = parse_pairs(frame) if "negatives" in frame else choose_pairs(context, frame, split)
        for pairs, row in zip(asked, encoder.encode(asked), strict=True):
            for prompt, other in zip(row.prompts, pairs.others, strict=True):
                titles = context.prepared.items["title"]
                text = context.codec.tokenizer.decode(prompt)
                assert spans(text, [titles.iloc[item] for item in pairs.history])
                assert all(titles.iloc[item] in text for item in (pairs.liked, other))


def check_windows(context: CatalogueContext, recipe: Recipe, rows: Sequence[Row]) -> None:
    for row in rows:
        for window in as_windows(row, context.catalogue):
            check(context, recipe, window.prompt.tolist(), window.history)


def check_item_tasks(context: CatalogueContext, recipe: Recipe) -> None:
    stage = check_plan(context, plan_run(recipe, sft_run(recipe)))
    found = load_operations(recipe.task).make_rows(stage, False)
    texts = [row for row in found.rows if isinstance(row, TextRow)]
    assert texts
    for row in texts:
        answer = context.codec.tokenizer.decode(row.answer, skip_special_tokens=True)
        assert answer.strip('"') in TITLES


@pytest.mark.parametrize("name", list_shipped_names())
def test_every_item_of_a_history_is_in_the_prompt(
    name: str, tmp_path: Path, backbone: Path
) -> None:
    recipe = small(name, tmp_path, backbone)
    prepare_data(recipe, Path)
    if recipe.id_tokens is not None:
        tokenize(recipe, progress=Silent())
    context = open_context(recipe, Silent())
    if recipe.prompt.task == "rank-pair":
        check_pairs(context, recipe, "train")
        check_pairs(open_context(recipe, Silent(), evaluation=True), recipe, "eval")
        return
    if recipe.sft.item_tasks is not None:
        check_item_tasks(context, recipe)
    check_windows(context, recipe, build_training_rows(context, recipe.sft.train.rows))
    frame = context.prepared.split("test")
    check_windows(context, recipe, build_window_rows(context, frame))
    assert len({row.prompt.tobytes() for row in build_window_rows(context, frame)}) == distinct(
        frame
    )


def distinct(frame: pd.DataFrame) -> int:
    """Histories that differ: so many prompts have to."""
    assert TARGET in frame
    return len({tuple(cast("Sequence[int]", history)) for history in frame[HISTORY]})


GENUINE = {
    "forty users": ("odd-samples/semantic-ids-text-prompt/inter.json", "index.json"),
    "Instruments": ("sid-instruments/Instruments.inter.json.gz", "Instruments.index.json.gz"),
}


@pytest.mark.parametrize("name", GENUINE)
def test_no_two_histories_of_the_papers_recipe_share_a_prompt(
    name: str, shared_data: Path, tmp_path: Path, backbone: Path
) -> None:
    """Items of one ID (48 of Instruments) are one entry, here as in the answer."""
    reviews, index = GENUINE[name]
    folder = (shared_data / reviews).parent
    files = [f"data.reviews={shared_data / reviews}", f"data.index={folder / index}"]
    words = [*files, "data.k_core=0", f"out={tmp_path / 'runs'}", f"model.backbone={backbone}"]
    recipe = read_recipe("papers/ilrec-instruments", words)
    prepare_data(recipe, Path)
    context = open_context(recipe, Silent())
    assert context.recipe.prompt.template == "instruments"
    frame, tokens = (
        context.prepared.split("test"),
        context.prepared.items[TOKENS].map(tuple).tolist(),
    )
    spelt = {tuple(tokens[item] for item in history) for history in frame[HISTORY]}
    prompts = context.encoder.encode(frame[HISTORY].tolist())
    assert len(spelt) > len(frame) * 0.9
    assert len({prompt.tobytes() for prompt in prompts}) == len(spelt)
