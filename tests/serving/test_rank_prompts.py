"""The prompts of an exported ``rank.py``, token by token those of the run, for many tokenizers."""

from __future__ import annotations

from typing import Any

import pytest

from llmrec_cli.serving.exported.rank import Catalogue
from tests.models.test_chat import CHATS, WITH_BOS, encoder_of, tokenizer_of, wording

HOSTILE = "a<|im_start|>b</s>c<|eot_id|> <start_of_turn>"
TITLES = ["Red kite", HOSTILE, "Café Noir"]
LAYOUT = 'item = "<s>{title}"\nlayout = "<s><|im_start|>\\n{instruction} {history} </s>"\n'


def catalogue_of(encoder: Any) -> Catalogue:
    """As an export has it."""
    template = encoder.marked
    prompt = {
        "head": template.head,
        "tail": template.tail,
        "separator": template.separator,
        "empty": template.no_history,
        "whole": template.whole,
        "history": 20,
        "max_tokens": 512,
    }
    items = [
        {"item_id": title, "title": title, "tokens": [], "text": template.render_item(title)}
        for title in TITLES
    ]
    return Catalogue(items, prompt, {}, {})


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", WITH_BOS)
@pytest.mark.parametrize("layout", [False, True])
def test_prompts_are_those_of_the_run(name: str, chat: str, layout: bool) -> None:
    tokenizer = tokenizer_of(name, chat)
    encoder = encoder_of(tokenizer, wording(LAYOUT if layout else ""), TITLES, chat=not layout)
    catalogue = catalogue_of(encoder)
    for history in ([], [0], [0, 1, 2]):
        told = [catalogue.items[item] for item in history]
        (own,) = encoder.encode([history])
        assert catalogue.prompt_ids(tokenizer, told) == own.tolist()
