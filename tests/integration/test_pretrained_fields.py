"""Items with their fields as a real pretrained model reads them: genuine cards, and its tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.data.histories import read_histories
from llmrec_cli.data.matching import items_of_user
from llmrec_cli.models.tokenizer import make_codec
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.training.rows import PromptEncoder, encode_catalogue
from tests.data.test_field_wording import wording
from tests.docs.doc_pages import DOCS, blocks, read

RECIPE = """
[data]
format = "amazon2018"
reviews = "{cards}/Gift_Cards_5.json.gz"
metadata = "{cards}/meta_Gift_Cards.json.gz"
fields = ["brand", "category", "price", "description"]
"""
RATED = RECIPE.replace('"brand", "category", "price", "description"', '"rating", "gap"')
ITEM = "item = '\"{title}\"{brand}{category}{price}{description}'\n"


@pytest.mark.slow
def test_gift_cards_read_as_the_page_shows(
    smollm2: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cards = shared_data / "amazon2018-gift-cards"
    Path("cards.toml").write_text(RECIPE.replace("{cards}", str(cards)))
    said: list[str] = []
    prepared = prepare_data(read_recipe("cards.toml"), Path, said.append)
    have = "brand 118, category 147, price 106, description 144 have one"
    assert f"fields of 147 items (data.fields): {have}" in said
    assert any(line.startswith("metadata: 4 rows with an unusable price") for line in said)
    counted = json.loads((prepared.folder / "manifest.json").read_text())["catalogue"]
    assert counted["items with a field"]["price"] == 106
    assert not prepared.items["description"].str.contains("<br>|</", na=False).any()
    assert prepared.items["price"].dropna().str.fullmatch(r"\$\d+\.\d\d").all()

    codec = make_codec(AutoTokenizer.from_pretrained(smollm2))
    template = wording(ITEM + "[fields]\ndescription_tokens = 16\n")
    catalogue = encode_catalogue(prepared.items, codec)
    encoder = PromptEncoder(template, codec, prepared.items, catalogue, 2048)
    shown = next(b.text for b in blocks(read(DOCS / "prompts.md")) if b.text.startswith('"Denny'))
    assert shown.rstrip("\n") in encoder.texts
    assert encoder.fields is not None
    assert (encoder.fields.described, encoder.fields.cut) == (144, 143)
    titles = [wording("").render_item(title) for title in prepared.items["title"]]
    behind = [text.removeprefix(title) for text, title in zip(encoder.texts, titles, strict=True)]
    assert max(map(len, codec.encode([text.partition(": ")[2] for text in behind]))) <= 16 + 1
    history = [3, 1, 4, 1, 5]
    (ids,) = encoder.encode([history])
    told = template.join([encoder.texts[item] for item in history])
    assert codec.spell(ids.tolist()) == told


@pytest.mark.slow
def test_what_a_user_gave_reads_as_the_page_shows(
    smollm2: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cards = shared_data / "amazon2018-gift-cards"
    Path("cards.toml").write_text(RATED.replace("{cards}", str(cards)))
    said: list[str] = []
    prepared = prepare_data(read_recipe("cards.toml"), Path, said.append)
    counts = "train 5,149 of 5,149, valid 2,020 of 2,020, test 2,470 of 2,470"
    assert f"history items with a rating (data.fields): {counts}" in said

    codec = make_codec(AutoTokenizer.from_pretrained(smollm2))
    template = wording("item = '\"{title}\"{rating}{gap}'\n")
    catalogue = encode_catalogue(prepared.items, codec)
    encoder = PromptEncoder(template, codec, prepared.items, catalogue, 2048)
    test = prepared.split("test")
    user = test[test["user_id"] == "A1ISQ4BFCCGKVY"]
    (ids,) = encoder.encode(read_histories(user))
    pages = blocks(read(DOCS / "prompts.md"))
    shown = next(b.text for b in pages if b.text.startswith('"Amazon.com Gift Card in a Greeting'))
    assert codec.spell(ids.tolist()) == template.join([shown.rstrip("\n")])
    found = items_of_user(prepared, "A1ISQ4BFCCGKVY")
    (longer,) = encoder.encode([found])
    told = codec.spell(longer.tolist())
    assert told.startswith(template.head + shown.rstrip("\n"))
    assert told.count(" (rated ") == len(found) == 6
