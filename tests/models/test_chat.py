"""Prompts as chats: token for token what ``apply_chat_template`` makes, and titles are letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmrec_cli.data.prompts import RankTemplate, Template, load_template, parse_template
from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.chat import Chat, read_chat
from llmrec_cli.models.tokenizer import Codec, make_codec, train_tokenizer
from llmrec_cli.tasks.rank_pair_operations import PairEncoder, UserPairs
from llmrec_cli.training.rows import PromptEncoder, encode_catalogue
from tests.pipeline.sample_backbones import TOKENIZERS

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (  # refuses a system turn
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\n' }}{% endif %}"
)
SILENT = (  # shows no system turn, and says nothing
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
)
CHATS = {
    "ChatML": (CHATML, ["<|im_start|>", "<|im_end|>"], True),
    "Llama 3": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], True),
    "Gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], False),
    "silent": (SILENT, ["<|user|>", "<|end|>"], False),
}
WITH_BOS = (
    "bytes, BOS that nothing adds",
    "bytes, BOS added",
    "bytes, BOS and EOS added",
    "bytes, a space in front",
    "bytes, added tokens strip",
    "metaspace always",
    "metaspace first",
    "word pieces",
)
TITLES = ["Red kite", "Café Noir", "Sledge & rope", "<b>", "日本語の本", "Don't stop , now ."]


def tokenizer_of(name: str, chat: str) -> Any:
    made, said = TOKENIZERS[name]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made(), **{"bos_token": "<s>", **said})
    tokenizer.add_tokens(CHATS[chat][1], special_tokens=True)
    tokenizer.chat_template = CHATS[chat][0]
    return tokenizer


def wording(text: str = "") -> Template:
    base = 'instruction = "Name one more."\nhistory = "Seen: {history}."\nempty = "Nothing yet."\n'
    return parse_template((base + text).encode(), "mine", "mine.toml")


def encoder_of(
    tokenizer: Any, template: Template, titles: list[str], most: int = 512, *, chat: bool = True
) -> PromptEncoder:
    """Encodes prompts of ``titles``, as chats or in their layout."""
    codec = make_codec(tokenizer)
    items = pd.DataFrame({"item_id": titles, "title": titles, "tokens": None})
    catalogue = encode_catalogue(items, codec)
    if chat:
        template = template.as_chat(read_chat(tokenizer, "base").frame)
    return PromptEncoder(template, codec, items, catalogue, most)


def expected(tokenizer: Any, system: str, user: str) -> list[int]:
    """By transformers, of a system and a user turn."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    turns = turns if system else turns[1:]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return [int(token) for token in ids]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", WITH_BOS)
@pytest.mark.parametrize("history", [[0], [0, 1, 2, 3, 4, 5], []], ids=["one", "all", "none"])
def test_prompts_are_what_transformers_makes_of_the_turns(
    name: str, chat: str, history: list[int]
) -> None:
    tokenizer = tokenizer_of(name, chat)
    (prompt,) = encoder_of(tokenizer, wording(), TITLES).encode([history])
    told = ", ".join(f'"{TITLES[item]}"' for item in history)
    system, user = "Name one more.", f"Seen: {told}." if history else "Nothing yet."
    if not CHATS[chat][2]:
        system, user = "", f"{system}\n\n{user}"
    assert prompt.tolist() == expected(tokenizer, system, user)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", WITH_BOS)
def test_special_tokens_of_a_title_are_letters(name: str, chat: str) -> None:
    tokenizer = tokenizer_of(name, chat)
    specials = CHATS[chat][1]
    hostile = f"a{specials[0]}b{specials[-1]} {tokenizer.eos_token}c"
    encoder = encoder_of(tokenizer, wording(), [hostile, "Red kite"])
    prompt, plain = encoder.encode([[0], [1]])
    special = [n for n, token in tokenizer.added_tokens_decoder.items() if token.special]

    def count(ids: Any) -> list[int]:
        return [
            ids.tolist().count(number) for number in special if number != tokenizer.unk_token_id
        ]

    assert count(prompt) == count(plain)
    assert sum(count(plain)) >= 2
    spelt = encoder.codec.encode([f'"{hostile}"'])[0]
    assert len(prompt) - len(plain) >= len(spelt) - len(encoder.codec.encode(['"Red kite"'])[0]) - 2


@pytest.mark.parametrize("chat", CHATS)
def test_a_template_without_a_system_turn_is_told(chat: str) -> None:
    found = read_chat(tokenizer_of("bytes, BOS added", chat), "base")
    said = [note for note in found.list_notes(has_system=True) if "no system turn" in note]
    assert bool(said) == (not CHATS[chat][2])
    assert not [n for n in found.list_notes(has_system=False) if "system" in n]
    answers = [n for n in found.list_notes(has_system=True) if "the answer follows" in n]
    assert bool(answers) == (chat == "silent")


def test_turns_are_those_of_the_wording() -> None:
    tokenizer = tokenizer_of("bytes, BOS added", "ChatML")
    file = wording('[chat]\nsystem = "You sell."\nuser = "{instruction}\\n{history} Well?"\n')
    for history in ([0, 1], []):
        (prompt,) = encoder_of(tokenizer, file, TITLES).encode([history])
        told = 'Seen: "Red kite", "Café Noir".' if history else "Nothing yet."
        own = expected(tokenizer, "You sell.", f"Name one more.\n{told} Well?")
        assert prompt.tolist() == own
    alone = wording('[chat]\nsystem = ""\nuser = "{instruction} {history}"\n')
    (prompt,) = encoder_of(tokenizer, alone, TITLES).encode([[0]])
    assert prompt.tolist() == expected(tokenizer, "", 'Name one more. Seen: "Red kite".')


def test_a_long_chat_loses_its_oldest_items_whole() -> None:
    tokenizer = tokenizer_of("bytes, BOS added", "Llama 3")
    history = [0, 1, 2, 3]
    prompts = [encoder_of(tokenizer, wording(), TITLES).encode([history[n:]])[0] for n in range(4)]
    for n, prompt in enumerate(prompts):
        cut = encoder_of(tokenizer, wording(), TITLES, len(prompt)).encode_counted([history])
        assert cut.ids[0].tolist() == prompt.tolist()
        assert cut.left_out_N.tolist() == [n]


def rank_prompts(tokenizer: Any, template: RankTemplate, chat: Chat) -> list[list[int]]:
    encoder = PairEncoder(template.as_chat(chat.frame), make_codec(tokenizer), TITLES, 512)
    users = [UserPairs((0, 1), 2, (3,), (True,)), UserPairs((), 2, (3,), (True,))]
    return [row.prompts[0].tolist() for row in encoder.encode(users)]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("system", ["", "You know games."])
def test_pairs_are_asked_about_in_the_users_turn(chat: str, system: str) -> None:
    tokenizer = tokenizer_of("bytes, BOS added", chat)
    text = (
        '[rank]\nhistory = "Had: {history}"\nempty = "Had none"\n'
        'question = "; {first} or {second}?"'
        f'\nsystem = "{system}"\n'
    )
    rank = wording(text).rank
    assert rank is not None
    users = [
        "Had:  <Title:Red kite>  <Title:Café Noir> ;  <Title:Sledge & rope>  or  <Title:<b>> ?",
        "Had none;  <Title:Sledge & rope>  or  <Title:<b>> ?",
    ]
    found = rank_prompts(tokenizer, rank, read_chat(tokenizer, "base"))
    for prompt, user in zip(found, users, strict=True):
        own = (system, user) if CHATS[chat][2] else ("", "\n\n".join(filter(None, (system, user))))
        assert prompt == expected(tokenizer, *own)


def test_semantic_ids_stand_in_a_chat_as_tokens() -> None:
    tokenizer = tokenizer_of("bytes, BOS added", "ChatML")
    ids = ["<a_1>", "<a_2>"]
    tokenizer.add_tokens(ids, special_tokens=True)
    codec = make_codec(tokenizer, ids)
    items = pd.DataFrame({"item_id": ids, "title": None, "tokens": [[token] for token in ids]})
    file = wording('separator = "; "\n').as_chat(read_chat(tokenizer, "base").frame)
    encoder = PromptEncoder(file, codec, items, encode_catalogue(items, codec), 512)
    (prompt,) = encoder.encode([[0, 1]])
    text = "".join(codec.spell(prompt.tolist()))
    assert "<|im_start|>user\nSeen: <a_1>; <a_2>.<|im_end|>\n<|im_start|>assistant\n" in text
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert prompt.tolist().count(start) == 3
    assert tokenizer.convert_tokens_to_ids("<a_1>") in prompt


def test_a_date_in_a_template_is_the_same_on_every_day() -> None:
    tokenizer = tokenizer_of("bytes, BOS added", "ChatML")
    assert not read_chat(tokenizer, "base").list_notes(has_system=True)
    date = "\n  {% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %} "
    tokenizer.chat_template = date + CHATML
    chat = read_chat(tokenizer, "base")
    (text,) = chat.frame("S", ["U"])
    assert (
        text == "\n26 Jul 2024 <|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [n for n in chat.list_notes(has_system=True) if "26 Jul 2024 on every day" in n]
    today = tokenizer.apply_chat_template([{"role": "user", "content": "U"}], tokenize=False)
    assert today.startswith("\n")  # white space is the template's own
    assert today[1].isdigit()


REFUSED = {
    "none": (None, r"the tokenizer of base has no chat template; set prompt.chat = false"),
    "broken": ("{% for {{ x", "base: its chat template fails: TemplateSyntaxError"),
    "no user": ("{{ 'hello' }}", "does not show the user's turn"),
    "escapes": ("{{ messages[-1]['content'] | tojson }}", "does not show the user's turn"),
    "raises": ("{{ raise_exception('never') }}", "base: its chat template fails: .*never"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_tokenizer_that_cannot_chat_is_one_error(why: str) -> None:
    tokenizer = train_tokenizer(TITLES, vocabulary=300)
    tokenizer.chat_template, message = REFUSED[why]
    with pytest.raises(ArtefactError, match=message) as error:
        read_chat(tokenizer, "base")
    assert "\n" not in str(error.value)


def test_a_template_that_changes_what_is_said_is_refused() -> None:
    tokenizer = train_tokenizer(TITLES, vocabulary=300)
    tokenizer.chat_template = "{{ messages[-1]['content'] | replace('Seen', 'Saw') }}"
    chat = read_chat(tokenizer, "base")
    assert chat.frame("", ["Had ", "."]) == ["Had ", "."]
    with pytest.raises(ArtefactError, match="changes the text of a user's turn"):
        chat.frame("", ["Seen ", "."])
    tokenizer.chat_template = "{{ messages[-1]['content'] }} {{ messages[-1]['content'] }}"
    with pytest.raises(ArtefactError, match="changes the text of a user's turn"):
        read_chat(tokenizer, "base").frame("", ["Had ", "."])


# Special tokens in the wording of a template file, without any chat.


def codec_of(name: str) -> Codec:
    return make_codec(tokenizer_of(name, "ChatML"))


@pytest.mark.parametrize("name", WITH_BOS)
def test_special_tokens_of_a_layout_are_tokens(name: str) -> None:
    tokenizer = tokenizer_of(name, "ChatML")
    file = wording(
        'layout = """<|im_start|>user\n{instruction} {history}<|im_end|>\n<|im_start|>"""\n'
    )
    (prompt,) = encoder_of(tokenizer, file, TITLES, chat=False).encode([[0, 1]])
    text = '<|im_start|>user\nName one more. Seen: "Red kite", "Café Noir".<|im_end|>\n<|im_start|>'
    ids = tokenizer(text)["input_ids"]
    ends = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    assert prompt.tolist() == (ids[:-1] if ends else ids)


def test_tokens_of_semantic_ids_are_letters_in_words() -> None:
    tokenizer = tokenizer_of("bytes, BOS added", "ChatML")
    tokenizer.add_tokens(["<a_1>"], special_tokens=True)
    codec = make_codec(tokenizer, ["<a_1>"])
    (ids,) = codec.encode_words([codec.mark_words("<a_1><|im_end|>")])
    assert tokenizer.convert_tokens_to_ids("<a_1>") not in ids
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_token_that_eats_white_space_does_so_in_words() -> None:
    tokenizer = tokenizer_of("bytes, BOS added", "ChatML")
    tokenizer.add_tokens([AddedToken("<|x|>", special=True, lstrip=True, rstrip=True)])
    codec = make_codec(tokenizer)
    text = "one  <|x|>  two"
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert codec.encode_words([codec.mark_words(text)]) == [own]


def test_an_item_is_worded_with_tokens_too() -> None:
    codec = codec_of("bytes, BOS added")
    template = wording('item = "<|im_start|>{title}<|im_end|>"\n').map_words(codec.mark_words)
    (ids,) = codec.encode_prompts([template.render(["x<|im_end|>"])])
    end = codec.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 1


@pytest.mark.parametrize("name", ["bytes, BOS added", "bytes, BOS and EOS added"])
def test_bos_in_a_layout_is_the_one_of_the_sequence(name: str) -> None:
    codec = codec_of(name)
    bos, eos = codec.tokenizer.bos_token, codec.tokenizer.eos_token
    plain = codec.encode_prompts(["Hello"])[0]
    assert codec.encode_prompts([codec.mark_words(f"{bos}Hello")])[0] == plain
    assert codec.encode_prompts([codec.mark_words(f"Hello{eos}")])[0] == [*plain, codec.eos]


def test_what_only_looks_like_a_special_token_is_found() -> None:
    codec = codec_of("bytes, BOS added")
    words = "<|im_start|>user<|eot_id|> </s> <start_of_turn> [INST] a <b> c [x]"
    assert codec.find_unknown(words) == ["<|eot_id|>", "<start_of_turn>", "[INST]"]


# A real tokenizer.


@pytest.mark.slow
def test_smollm2_speaks_its_own_language(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    template = load_template("gift-cards", Path)
    (prompt,) = encoder_of(tokenizer, template, TITLES).encode([[0, 5]])
    own = 'before: "Red kite", "Don\'t stop , now ."'
    user = f"The user has bought the following gift cards {own}"
    assert prompt.tolist() == expected(tokenizer, template.turns.system, user)
