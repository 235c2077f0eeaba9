"""Item tasks on a pretrained model: what it reads, that it learns it, and what stops a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import ArtefactError
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.plan import check_plan, plan_run
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.tokenize import tokenize
from llmrec_cli.pipeline.train import align, sft
from llmrec_cli.runs.run import sft_run
from llmrec_cli.tasks.base import load_operations
from llmrec_cli.training.rows import Row, TextRow
from llmrec_cli.utils.progress import Silent
from tests.experiments import Told, typed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft reads it
]

RECIPE = """
[data]
format = "amazon2018"
reviews = ["{cards}/Gift_Cards_5.json.gz"]
metadata = ["{cards}/meta_Gift_Cards.json.gz"]
fields = ["description"]
[tokens]
kind = "semantic-id"
vectors = "random"
codes = 8
[prompt]
template = "gift-cards"
chat = true
[model]
backbone = "{backbone}"
tuning = "lora"
[sft.item_tasks]
title_to_id = 0.2
id_to_title = 0.2
description_to_id = 0.1
[train]
batch = 4
max_steps = 2
warmup = 0
learning_rate = 1e-3
validate_rows = 4
select = "loss"
[align.msl]
[align.msl.item_tasks]
title_to_id = 0.3
[eval]
rows = 4
resamples = 100
"""


@pytest.fixture
def home(smollm2: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cards = shared_data / "amazon2018-gift-cards"
    Path("cards.toml").write_text(RECIPE.format(cards=cards, backbone=smollm2))
    prepare_data(read_recipe("cards.toml"), Path)
    tokenize(read_recipe("cards.toml"), append=False, progress=Silent())
    return tmp_path


def test_smollm2_is_taught_its_items(home: Path, smollm2: Path) -> None:
    recipe = read_recipe("cards.toml")
    context = setup.open_context(recipe, Silent())
    stage = check_plan(context, plan_run(recipe, sft_run(recipe)))
    found = load_operations(recipe.task).make_rows(stage, False)
    told = found.notes[0]
    assert told == (
        "1,582 of 3,164 rows are of item tasks: title_to_id 633 (147 items), id_to_title 633 "
        "(147 items), description_to_id 316 (144 items; 3 without a description)"
    )
    assert [row.number for row in found.rows] == list(range(3164))

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    items, index = (
        context.prepared.items,
        json.loads((recipe.tokens_folder / "index.json").read_text()),
    )
    asked = found.rows[1582]
    assert isinstance(asked, Row)
    (item,) = asked.targets
    turns = [
        {"role": "system", "content": "Given the title of an item, please name the item."},
        {"role": "user", "content": f'"{items.title[item]}"'},
    ]
    expected = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)
    assert asked.prompt.tolist() == expected["input_ids"]

    title = next(row for row in found.rows if isinstance(row, TextRow))
    spelt = context.codec.spell([*title.prompt.tolist(), *title.answer.tolist()])
    shown = spelt.partition("user\n")[2]
    ids = {
        "".join(tokens): items.title[items.item_id == key].iloc[0] for key, tokens in index.items()
    }
    named = shown.partition("<|im_end|>")[0]
    assert shown == f'{named}<|im_end|>\n<|im_start|>assistant\n"{ids[named]}"<|im_end|>'


WORDS = """
instruction = "Recommend."
history = "{history}"
empty = "Nothing."
[item_tasks]
title_to_id = "Name it."
"""


def test_stages_train_on_them_and_hold_to_their_words(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.toml").write_text(WORDS)
    words = ["prompt.template=./own.toml", "prompt.chat=false"]
    overrides = [*words, "sft.item_tasks.id_to_title=0.4"]
    recipe = read_recipe("cards.toml", overrides)
    told = Told([])
    sft(recipe, resume=False, progress=told)
    align(recipe, "msl", resume=False, progress=Silent())
    assert any("rows are of item tasks: title_to_id 1,055" in line for line in told.said)
    for run in ("sft", "align-msl"):
        lines = (recipe.folder / run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["loss"] > 0 for line in lines] == [True, True]
    sft(recipe, resume=True, progress=Silent())

    Path("own.toml").write_text(WORDS.replace("Recommend.", "Recommend!"))
    with pytest.raises(ArtefactError, match="wording"):
        sft(recipe, resume=True, progress=Silent())
    Path("own.toml").write_text(WORDS.replace("Name it.", "Name it!"))
    with pytest.raises(ArtefactError, match="a hash of the words of its item tasks"):
        sft(recipe, resume=True, progress=Silent())
    done = typed(capsys, "eval", "cards.toml", *overrides)  # answers know no item tasks
    assert done.code == 0, done.err
    assert "align-msl" in done.out


def test_validate_shows_a_row_of_each(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = typed(capsys, "validate", "cards.toml", "--rows")
    assert done.code == 0, done.err
    assert "sft: 1,582 of 3,164 rows are of item tasks: title_to_id 633 (147 items)" in done.out
    assert "align-msl: 678 of 2,260 rows are of item tasks: title_to_id 678 (147 items)" in done.out
    for task in ("title_to_id", "id_to_title", "description_to_id"):
        assert f"as text, a row of {task}:" in done.out
    assert "shows no {description}" not in done.out
