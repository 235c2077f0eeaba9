"""Every kind of tokenizer through sft and eval: the same tokens, the true lists."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from llmrec_cli.models.language_model import Policy
from tests.experiments import Ended, typed
from tests.pipeline.plain_lists import Ids, Plain
from tests.pipeline.sample_backbones import (
    ALL,
    TITLES,
    TOKENIZERS,
    byte_level,
    trained,
    write_checkpoint,
)

pytestmark = pytest.mark.slow  # an sft and an eval per kind of tokenizer

Capsys = pytest.CaptureFixture[str]
SFT, EVAL = ("sft", "own.toml"), ("eval", "own.toml", "--run", "sft")


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Ids]:
    """Every row that a policy is given to train on."""
    rows: list[Ids] = []
    plain = Policy.forward

    monkeypatch.setattr(
        "llmrec_cli.pipeline.loading._require_agreement", lambda *words, **named: None
    )  # feeds rows

    def forward(policy: Policy, input_ids_BT: torch.Tensor, *words: Any, **named: Any) -> Any:
        rows.extend(input_ids_BT.tolist())
        return plain(policy, input_ids_BT, *words, **named)

    monkeypatch.setattr(Policy, "forward", forward)
    return rows


def done(capsys: Capsys, *words: str) -> str:
    ended = typed(capsys, *words)
    assert ended.code == 0, ended.err
    return ended.err


def refused(capsys: Capsys, *words: str) -> str:
    """The one line of a command that wrote nothing."""
    ended: Ended = typed(capsys, *words)
    assert (ended.code, ended.out) == (2, ""), ended.err
    (line,) = ended.errors
    assert not list(Path("runs/own").glob("sft*"))
    return line


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_and_lists_are_those_of_the_tokenizer_and_the_model_alone(
    name: str, home: Path, fed: list[Ids], capsys: Capsys
) -> None:
    make, said = TOKENIZERS[name]
    write_checkpoint(home / "base", make(), said)
    plain = Plain(home, said)
    plain.check_catalogue()
    told = done(capsys, *SFT) + done(capsys, *EVAL)
    plain.check_fed(fed)
    plain.check_lists()
    entries = len(set(map(tuple, plain.answers)))
    report = json.loads(Path("runs/own/sft/report.json").read_text())
    assert report["entries"] == entries
    assert ("titles have tokens that another title has too" in told) == (entries < len(TITLES))


def test_titles_that_a_tokenizer_cannot_tell_apart_are_named(home: Path, capsys: Capsys) -> None:
    make, said = TOKENIZERS["word pieces"]
    write_checkpoint(home / "base", make(), said)
    told = done(capsys, *SFT)
    assert "6 titles have tokens that another title has too, such as 'Red kite' and" in told
    assert "'red KITE': they share 3 entries" in told


def test_the_choice_that_sets_tau_is_an_items_and_not_a_quotes(home: Path, capsys: Capsys) -> None:
    """This tokenizer keeps the opening quote apart, and has others for some of the titles."""
    with Path("own.toml").open("a") as recipe:
        recipe.write('[align.msl]\nparent = "base"\ntau = "ats"\n')
    write_checkpoint(home / "base", byte_level(), ALL)
    answers = Plain(home, ALL).answers
    (opening, passed), *others = Counter(first for first, *_ in answers).most_common()
    assert others
    words = len({second for first, second, *_ in answers if first == opening})
    said = (
        "align-msl: ATS sets tau by the widest choice of the catalogue: token 2 of an item, behind "
        f"'\"', N = {words} legal tokens; {passed} of {len(TITLES)} items"
    )
    ended = typed(capsys, "validate", "own.toml", "--rows")
    assert ended.code == 0, ended.err
    assert said in ended.out
    told = done(capsys, "align", "--method", "msl", "own.toml")
    assert told.index(said) < told.index("1/1 updates")
    ended = typed(capsys, "validate", "own.toml", "--rows", "align.msl.ats_eta=0.01")
    assert ended.code == 2
    assert f"the widest choice of the catalogue has N = {words} legal tokens" in ended.err


@pytest.mark.parametrize("template", ["items", "sequence"])
def test_nothing_is_said_of_a_tokenizers_own_idea_of_lengths(
    template: str, home: Path, capsys: Capsys, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(home / "base", byte_level(), {**ALL, "model_max_length": 3})
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        done(capsys, *SFT, f"prompt.template={template}")
    finally:
        logger.removeHandler(caplog.handler)
    assert "sequence length" not in caplog.text


NO_EOS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "UNK alone": {"unk_token": "<unk>"},
    "BOS and PAD": {"bos_token": "<s>", "pad_token": "<pad>"},
    "null": {"eos_token": None},
}


@pytest.mark.parametrize("name", NO_EOS)
def test_without_eos_no_item_could_end(name: str, home: Path, capsys: Capsys) -> None:
    write_checkpoint(home / "base", byte_level(), NO_EOS[name])
    assert "base' has no EOS token: items cannot end" in refused(capsys, *SFT)


def letters_only() -> Tokenizer:
    """A tokenizer without UNK, which drops what it never saw: of Japanese, nothing is left."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learnt = trained(tokenizer)
    plain = json.loads(learnt.to_str())
    merges = [m for m in plain["model"]["merges"] if all(part.isascii() for part in m)]
    kept = {t: n for t, n in plain["model"]["vocab"].items() if t.isascii() or t == "▁"}
    plain["model"]["vocab"] = {token: number for number, token in enumerate(kept)}
    plain["model"]["merges"] = [m for m in merges if "".join(m) in kept]
    made: Tokenizer = Tokenizer.from_str(json.dumps(plain))
    return made


def spelt_eos() -> Tokenizer:
    """A tokenizer that finds EOS in text, where a title spells it."""
    return TOKENIZERS["unigram, EOS added"][0]()


NAMED = {  # a tokenizer, what its file says, and the item that it cannot hold
    "nothing is left": (letters_only, ALL, "item 'item14' ('日本語の本') has no tokens"),
    "EOS is left": (
        spelt_eos,
        {"eos_token": "d"},
        "contains EOS in this tokenizer; leave the item out",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_an_item_without_tokens_or_with_eos_is_named(name: str, home: Path, capsys: Capsys) -> None:
    make, said, expected = NAMED[name]
    write_checkpoint(home / "base", make(), said)
    assert expected in refused(capsys, *SFT)
