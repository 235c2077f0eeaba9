"""``--resume`` of a finished run: kept if what it was made from is as it was, and else refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import ArtefactError
from llmrec_cli.pipeline.baseline import baseline
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.train import align, sft
from llmrec_cli.pipeline.zero_shot import record_base
from llmrec_cli.utils.progress import Silent
from tests.experiments import Told, copied, typed
from tests.models.test_chat import CHATS
from tests.pipeline.sample_backbones import ALL, RECIPE, byte_level, write_checkpoint, write_raw

Capsys = pytest.CaptureFixture[str]
TEMPLATE = 'instruction = "Name one."\nhistory = "Seen: {history}."\nempty = "Nothing."\n'
TABLES = '[align.msl]\nparent = "sft"\n[baseline.itemknn]\n'
OWN = "own.toml"
SFT, ALIGN, KNN = ("sft",), ("align", "--method", "msl"), ("baseline", "--model", "itemknn")


EXPLAINED = {
    "wording": "' (a hash of the words of prompt.template); put back what it was ",
    "prepared": "' (a hash of the prepared data); put back what it was ",
    "base_files.tokenizer.json": "' (model.backbone = '",
}
"""How the lines go on behind the values of a fact."""


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each kind, whose template is a file."""
    home = tmp_path_factory.mktemp("finished")
    write_raw(home)
    recipe_text = RECIPE.replace('template = "items"', 'template = "./mine.toml"')
    (home / OWN).write_text(recipe_text + TABLES)
    (home / "mine.toml").write_text(TEMPLATE)
    write_checkpoint(home / "base", byte_level(), ALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        recipe = read_recipe(OWN)
        prepare_data(recipe, Path)
        sft(recipe, resume=False, progress=Silent())
        align(recipe, "msl", resume=False, progress=Silent())
        baseline(recipe, "itemknn", resume=False, progress=Silent())
    return home


@pytest.fixture
def home(trained_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, whose runs name its files."""
    copy = copied(trained_home, tmp_path, monkeypatch)
    for file in copy.glob("runs/own/*/manifest.json"):
        file.write_text(file.read_text().replace(str(trained_home), str(copy)))
    return copy


def change_words(home: Path) -> None:
    (home / "mine.toml").write_text(TEMPLATE.replace("Name one", "Name two"))


def change_tokenizer(home: Path) -> None:
    file = home / "base" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")


def change_data(home: Path) -> None:
    """The same files' names, with one review less, prepared again."""
    reviews = (home / "reviews.json").read_text().splitlines(keepends=True)
    (home / "reviews.json").write_text("".join(reviews[:-1]))
    shutil.rmtree(home / "runs/own/prepared")
    prepare_data(read_recipe(OWN), Path)


@pytest.mark.parametrize("words", [SFT, ALIGN, KNN], ids=" ".join)
def test_what_is_as_it_was_is_kept(words: tuple[str, ...], home: Path, capsys: Capsys) -> None:
    ended = typed(capsys, *words, OWN, "--resume")
    assert (ended.code, "already finished" in ended.err) == (0, True), ended.err


@pytest.mark.parametrize(
    ("words", "change", "key"),
    [
        (SFT, change_words, "wording"),
        (SFT, change_tokenizer, "base_files.tokenizer.json"),
        (SFT, change_data, "prepared"),
        (ALIGN, change_words, "wording"),
        (ALIGN, change_data, "prepared"),
        (KNN, change_data, "prepared"),
    ],
)
def test_what_it_was_made_from_has_changed(
    words: tuple[str, ...],
    change: Callable[[Path], None],
    key: str,
    home: Path,
    capsys: Capsys,
) -> None:
    change(home)
    capsys.readouterr()
    ended = typed(capsys, *words, OWN, "--resume")
    assert ended.code == 2
    assert "already finished" not in ended.err
    (line,) = (line for line in ended.errors if ": error: " in line)
    assert f"ed with {key} = '" in line
    assert EXPLAINED[key] in line


def test_its_parent_was_made_anew_otherwise(home: Path, capsys: Capsys) -> None:
    shutil.rmtree(home / "runs/own/sft")
    other = "sft.train.learning_rate=1e-3"
    assert typed(capsys, *SFT, OWN, other).code == 0
    ended = typed(capsys, *ALIGN, OWN, other, "--resume")
    assert ended.code == 2
    assert "trained with parent_weights.model.safetensors = '" in ended.errors[-1]


def test_what_an_earlier_version_did_not_record_is_not_compared(home: Path, capsys: Capsys) -> None:
    for run in ("sft", "align-msl", "baseline-itemknn"):
        file = home / f"runs/own/{run}/manifest.json"
        manifest = json.loads(file.read_text())
        for fact in ("wording", "base_files", "parent_weights"):
            manifest["facts"].pop(fact, None)
        file.write_text(json.dumps(manifest))
    change_words(home)
    for words in (SFT, ALIGN, KNN):
        ended = typed(capsys, *words, OWN, "--resume")
        assert (ended.code, "already finished" in ended.err) == (0, True), ended.err


def test_run_finds_it_before_anything_is_trained(home: Path, capsys: Capsys) -> None:
    shutil.rmtree(home / "runs/own/align-msl")
    shutil.rmtree(home / "runs/own/baseline-itemknn")
    change_words(home)
    ended = typed(capsys, "run", OWN)
    assert (ended.code, "sft: trained with wording = '" in ended.errors[-1]) == (2, True), ended.err
    assert not (home / "runs/own/baseline-itemknn").exists()


def test_the_backbone_as_it_is_is_compared_too(home: Path) -> None:
    recipe, said = read_recipe(OWN), list[str]()
    folder = record_base(recipe, resume=False, progress=Silent())
    record_base(recipe, resume=True, progress=Told(said))
    assert said == [f"{folder}: already finished"]
    change_tokenizer(home)
    with pytest.raises(ArtefactError, match=r"base: made with base_files\.tokenizer\.json = '"):
        record_base(recipe, resume=True, progress=Told(said))


def test_a_conventional_model_knows_no_prompts(home: Path, capsys: Capsys) -> None:
    """It recommends whatever the recipe says of prompts."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(CHATS["ChatML"][1])
    write_checkpoint(home / "base", tokenizer, {**ALL, "chat_template": CHATS["ChatML"][0]})
    chats = ("prompt.chat=true", "prompt.template=items", "name=chats")
    for words in (("prepare", OWN, *chats), (*KNN, OWN, *chats)):
        assert typed(capsys, *words).code == 0
    ended = typed(capsys, "recommend", "--run", "runs/chats/baseline-itemknn")
    assert ended.code == 0, ended.err


def test_the_model_of_its_item_scores_was_made_anew(home: Path, capsys: Capsys) -> None:
    tables = '[baseline.sasrec]\nhidden = 8\n[align.ilrec]\nparent = "sft"\nn = 1\n'
    (home / OWN).write_text((home / OWN).read_text() + tables)
    ilrec, sasrec = ("align", "--method", "ilrec", OWN), ("baseline", "--model", "sasrec", OWN)
    for words in (sasrec, ilrec):
        ended = typed(capsys, *words)
        assert ended.code == 0, ended.err
    assert typed(capsys, *ilrec, "--resume").code == 0
    shutil.rmtree(home / "runs/own/baseline-sasrec")
    other = "baseline.sasrec.train.learning_rate=0.05"
    assert typed(capsys, *sasrec, other).code == 0
    ended = typed(capsys, *ilrec, other, "--resume")
    assert (ended.code, "trained with scores.sasrec = '" in ended.err) == (2, True), ended.err


def test_a_report_is_not_kept_when_the_words_to_evaluate_with_have_changed(
    home: Path, capsys: Capsys
) -> None:
    """``[eval.prompt]`` names a template too; what is trained does not depend on it."""
    words = home / "asked.toml"
    words.write_text(TEMPLATE.replace("Name one", "Tell one"))
    asked = (OWN, "eval.rows=4", "eval.prompt.template=./asked.toml")
    ended = typed(capsys, "eval", *asked, "--run", "sft")
    assert ended.code == 0, ended.err
    words.write_text("# only a comment\n" + words.read_text())
    assert "was evaluated on test" not in typed(capsys, "run", *asked).err
    words.write_text(TEMPLATE.replace("Name one", "Tell two"))
    ended = typed(capsys, "run", *asked)
    assert ended.code == 2
    assert "was evaluated on test with wording = " in ended.err
    assert "(a hash of the words of prompt.template); use the same recipe" in ended.err
