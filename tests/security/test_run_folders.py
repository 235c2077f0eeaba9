"""Hostile run folders, checkpoints, adapters, data and lists: a canary never runs (S1).

Every forged folder is signed again: hashes are no guard against whoever made the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline import loading
from llmrec_cli.pipeline.baseline import baseline
from llmrec_cli.pipeline.evaluate import evaluate_runs
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.train import align, sft
from llmrec_cli.training import launch
from llmrec_cli.utils import files
from llmrec_cli.utils.files import hash_file
from llmrec_cli.utils.progress import Silent
from tests.experiments import copied, typed
from tests.security.hostile import (
    MODULE,
    RECIPE,
    change_json,
    code,
    pickled,
    sign,
    write_base,
    write_raw,
    zipped,
)

pytestmark = [  # what peft has to say
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
Plant = Callable[[Path, Path], object]  # the experiment's folder, and what must not appear
Words = tuple[str, ...]
TABLES = """
[baseline.itemknn]
[baseline.sasrec]
hidden = 16
train = { max_steps = 2 }
[align.dmpo]
parent = "sft"
reference = "precompute"
[align.ilrec]
parent = "sft"
n = 1
scores = "sasrec"
"""
LORA = ("name=lora", "model.tuning=lora", "model.backbone=./base")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small experiment on a backbone of its own, and one with an adapter."""
    home = tmp_path_factory.mktemp("made")
    write_raw(home, [f"title {number}" for number in range(12)])
    write_base(home / "base")
    (home / "own.toml").write_text(RECIPE + TABLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        own, lora = read_recipe("own.toml"), read_recipe("own.toml", LORA)
        for recipe in (own, lora):
            prepare_data(recipe, Path)
            sft(recipe, resume=False, progress=Silent())
        for name in ("itemknn", "sasrec"):
            baseline(own, name, resume=False, progress=Silent())
        for name in ("dmpo", "ilrec"):
            align(own, name, resume=False, progress=Silent())
        evaluate_runs(own, ["sft"], split="test", again=False, progress=Silent())
    return home


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that must not appear; a module on the path would make it too."""
    found = tmp_path / "canary"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{MODULE}.py").write_text(code(found))
    monkeypatch.syspath_prepend(tmp_path / "path")
    return found


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(made, tmp_path, monkeypatch)


def pickle_at(name: str, make: Callable[[Path], bytes] = pickled) -> Plant:
    """A pickle in the place of a file, signed where its folder is."""

    def plant(root: Path, canary: Path) -> None:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(make(canary))
        vouch(root, file)

    return plant


def without_reference(plant: Plant) -> Plant:
    """The same where no reference is stored yet."""

    def planted(root: Path, canary: Path) -> None:
        shutil.rmtree(root / REFERENCE)
        plant(root, canary)

    return planted


def vouch(root: Path, file: Path) -> None:
    """Make the hashes beside a forged file fit."""
    if (file.parent / "files.json").is_file():
        sign(file.parent)
    if file.parent.name == "prepared" and file.name != "manifest.json":
        manifest = json.loads((file.parent / "manifest.json").read_text())
        manifest["files"][file.name]["sha256"] = hash_file(file)
        (file.parent / "manifest.json").write_text(json.dumps(manifest))
        for run in root.glob("*/manifest.json"):  # what a run says that it was trained on
            told = json.loads(run.read_text())
            if "prepared" in told.get("facts", {}):
                told["facts"]["prepared"] = hash_file(file.parent / "manifest.json")
                run.write_text(json.dumps(told))


def change(name: str, **changes: object) -> Plant:
    def plant(root: Path, canary: Path) -> None:
        change_json(root / name, changes)
        vouch(root, root / name)

    return plant


def unfinished(run: str, plant: Plant) -> Plant:
    """A run that ``--resume`` goes on with."""

    def planted(root: Path, canary: Path) -> None:
        manifest = root / run / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "running"}))
        shutil.rmtree(root / run / "model")
        plant(root, canary)

    return planted


def from_the_start(run: str, plant: Plant) -> Plant:
    def planted(root: Path, canary: Path) -> None:
        shutil.rmtree(root / run / "checkpoints")
        plant(root, canary)

    return unfinished(run, planted)


def anywhere(match: str, content: Callable[[Path], bytes]) -> Plant:
    def plant(root: Path, canary: Path) -> None:
        (file,) = root.glob(match)
        pickle_at(str(file.relative_to(root)), content)(root, canary)

    return plant


def adapter_bin(root: Path, canary: Path) -> None:
    (root / "sft/adapter/adapter_model.safetensors").unlink()
    pickle_at("sft/adapter/adapter_model.bin", zipped)(root, canary)


def link_in_model(root: Path, canary: Path) -> None:
    (root.parent / "secret.json").write_text('{"secret": 1}')
    (root / "sft/model/notes.json").symlink_to(root.parent / "secret.json")
    sign(root / "sft/model")


def extension(root: Path, canary: Path) -> None:
    """A column whose Arrow type is a pickle, as pyarrow once loaded them; pandas' metadata too."""
    file = root / "prepared/test.parquet"
    table = pq.read_table(file)
    name = table.schema.names[0]
    field = table.schema.field(name).with_metadata(
        {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickled(canary),
        }
    )
    schema = table.schema.set(0, field).with_metadata({b"pandas": pickled(canary)})
    pq.write_table(pa.Table.from_arrays(table.columns, schema=schema), file)
    vouch(root, file)


def other_recipe(line: str) -> Plant:
    def plant(root: Path, canary: Path) -> None:
        file = root / "sft/recipe.toml"
        file.write_text(line.format(module=MODULE) + "\n" + file.read_text())

    return plant


OWN, ADAPTED = "runs/own", "runs/lora"
EVAL: Words = ("eval", "own.toml", "--run", "sft", "--again")
EVAL_LORA: Words = (*EVAL, *LORA)
RECOMMEND: Words = ("recommend", "--run", f"{OWN}/sft", "--history", "title 1")
SASREC: Words = ("recommend", "--run", f"{OWN}/baseline-sasrec", "--history", "title 1")
ITEMKNN: Words = ("recommend", "--run", f"{OWN}/baseline-itemknn", "--history", "title 1")
EXPORT: Words = ("export", "--run", f"{OWN}/sft", "--to", "out")
COMPARE: Words = ("compare", OWN)
SHOW: Words = ("runs", "show", f"{OWN}/sft")
RESUME: Words = ("sft", "own.toml", "--resume")
DMPO: Words = ("align", "--method", "dmpo", "own.toml", "--resume")
ILREC: Words = ("align", "--method", "ilrec", "own.toml", "--resume")
REFERENCE = "align-dmpo/reference-0-of-1"
WEIGHTS, SETTINGS = "sft/model/model.safetensors", "sft/adapter/adapter_config.json"
AUTO = {"AutoModelForCausalLM": f"{MODULE}.Evil"}
CASES: dict[str, tuple[Words, Plant, str]] = {  # typed, planted, refused how ("": ignored)
    "model": (EVAL, pickle_at(WEIGHTS, zipped), "model': SafetensorError"),
    "model, recommend": (RECOMMEND, pickle_at(WEIGHTS), "SafetensorError"),
    "model's code": (RECOMMEND, change("sft/model/config.json", auto_map=AUTO), ""),
    "a pickle more": (EVAL, pickle_at("sft/model/pytorch_model.bin", zipped), ""),
    "an index in the model": (
        EVAL,
        change(
            "sft/model/model.safetensors.index.json", metadata={}, weight_map={"x": "../../x.bin"}
        ),
        "names '../../x.bin'",
    ),
    "a link to be exported": (EXPORT, link_in_model, "a link, which llmrec never writes"),
    "run's manifest": (RECOMMEND, pickle_at("sft/manifest.json"), "not valid JSON"),
    "run's report": (COMPARE, pickle_at("sft/report.json"), "report.json"),
    "run's predictions": (COMPARE, pickle_at("sft/predictions.parquet"), "parquet"),
    "run's recipe": (RECOMMEND, pickle_at("sft/recipe.toml"), "recipe.toml"),
    "run's recipe, an expression": (
        RECOMMEND,
        other_recipe('seed = __import__("{module}")'),
        "not valid TOML",
    ),
    "run's recipe, a class": (RECOMMEND, other_recipe('trust_remote_code = "{module}"'), "unknown"),
    "runs show": (SHOW, pickle_at("sft/manifest.json"), "manifest.json"),
    "base": (
        RESUME,
        unfinished("sft", pickle_at("base/model.safetensors", zipped)),
        "started with base_files.model.safetensors",
    ),
    "checkpoint's weights": (
        RESUME,
        unfinished("sft", pickle_at("sft/checkpoints/step-2/weights.safetensors")),
        "weights.safetensors: not the tensors",
    ),
    "checkpoint's optimizer": (
        RESUME,
        unfinished("sft", pickle_at("sft/checkpoints/step-2/optimizer.safetensors", zipped)),
        "optimizer.safetensors: not the tensors",
    ),
    "checkpoint's state": (
        RESUME,
        unfinished("sft", pickle_at("sft/checkpoints/step-2/state.json")),
        "not valid JSON",
    ),
    "checkpoint's random states": (
        RESUME,
        unfinished("sft", pickle_at("sft/checkpoints/step-2/random_states_0.pkl")),
        "",
    ),
    "reference": (
        DMPO,
        from_the_start(
            "align-dmpo", pickle_at("align-dmpo/reference-0-of-1/reference.safetensors")
        ),
        "reference.safetensors: not the tensors",
    ),
    "mined negatives": (
        DMPO,
        from_the_start(
            "align-dmpo",
            without_reference(pickle_at("align-dmpo/negatives/step-0/lists.json")),
        ),
        "not valid JSON",
    ),
    "item scores": (
        ILREC,
        from_the_start(
            "align-ilrec", anywhere("scores/sasrec-train-*/vectors.safetensors", zipped)
        ),
        "vectors.safetensors: not the tensors",
    ),
    "sasrec": (SASREC, pickle_at("baseline-sasrec/model/weights.safetensors"), "not the tensors"),
    "itemknn": (
        ITEMKNN,
        pickle_at("baseline-itemknn/model/weights.safetensors"),
        "not the tensors",
    ),
    "prepared rows": (EVAL, pickle_at("prepared/test.parquet"), "no readable parquet"),
    "prepared items": (EVAL, pickle_at("prepared/items.parquet"), "no readable parquet"),
    "prepared manifest": (EVAL, pickle_at("prepared/manifest.json"), "not a manifest"),
    "a column's type": (EVAL, extension, ""),
}
ON_ADAPTERS: dict[str, tuple[Words, Plant, str]] = {
    "adapter as a pickle": (EVAL_LORA, adapter_bin, "adapter_model.safetensors: missing"),
    "a pickle called adapter": (
        EVAL_LORA,
        pickle_at("sft/adapter/adapter_model.safetensors", zipped),
        "adapter: SafetensorError",
    ),
    "adapter's base": (EVAL_LORA, change(SETTINGS, base_model_name_or_path="../../evil"), ""),
    "adapter's modules": (
        EVAL_LORA,
        change(SETTINGS, auto_mapping={"base_model_class": "Evil", "parent_library": MODULE}),
        "auto_mapping",
    ),
    "adapter's other core": (
        EVAL_LORA,
        change(SETTINGS, megatron_config={"a": 1}, megatron_core=MODULE),
        "megatron_con",
    ),
    "another kind of adapter": (
        EVAL_LORA,
        change(
            SETTINGS, peft_type="MULTITASK_PROMPT_TUNING", prompt_tuning_init_state_dict_path=""
        ),
        'expected "LORA"',
    ),
    "adapter's start from a file": (
        EVAL_LORA,
        change(SETTINGS, corda_config={"cache_file": "x.pt"}, init_lora_weights="corda"),
        "corda",
    ),
}


def ended(
    words: Words, plant: Plant, root: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a command said of a forged experiment; empty where it did its work."""
    plant(root, canary)
    done = typed(capsys, *words)
    assert not canary.exists()
    assert done.code in (0, 2), done.err
    assert done.err.count(": error: ") == (done.code == 2), done.err
    return done.err if done.code else ""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_forged_experiment_runs_nothing(
    name: str, home: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, plant, refused = CASES[name]
    said = ended(words, plant, home / OWN, canary, capsys)
    assert refused in said
    assert bool(said) == bool(refused)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_ADAPTERS)
def test_a_forged_adapter_runs_nothing(
    name: str, home: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, plant, refused = ON_ADAPTERS[name]
    said = ended(words, plant, home / ADAPTED, canary, capsys)
    assert refused in said
    assert bool(said) == bool(refused)


LISTS: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "a pickle": ("lists.pkl", pickled),
    "a pickle of torch": ("lists.csv", zipped),
    "a pickle of numpy": ("lists.npy", lambda canary: b"\x93NUMPY\x01\x00" + pickled(canary)),
    "a parquet in name": ("lists.parquet", lambda canary: b"PAR1" + pickled(canary) + b"PAR1"),
    "cells that are formulas": (
        "lists.csv",
        lambda canary: b"user_id,item_id,rank\nuser1,=cmd|' /C touch'!A0,__import__('os')\n",
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_another_tool_run_nothing(
    name: str, home: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, content = LISTS[name]
    (home / file).write_bytes(content(canary))
    done = typed(capsys, *COMPARE, "--external", f"theirs={file}")
    assert (done.code, canary.exists()) == (2, False)
    (line,) = done.err.splitlines()
    assert file in line


RAW = (
    "__import__('os').system('touch {}')",
    "{{'asin': __import__('os').system('touch {}')}}",
    "{{'asin': open('{}', 'w')}}",
    "{{'asin': 'a', 'title': [open('{}', 'w') for _ in 'a'][0]}}",
)


@pytest.mark.parametrize("line", RAW)
def test_a_line_of_2014_is_a_literal_and_nothing_else(
    line: str, home: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "reviews.json").write_text(line.format(canary) + "\n")
    words = ("data.format=amazon2014", "data.reviews=./reviews.json", "name=other")
    done = typed(capsys, "prepare", "own.toml", *words)
    assert (done.code, canary.exists()) == (2, False), done.err
    assert "reviews.json:1" in done.err


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "distributed_type: !!python/object/apply:os.system ['touch {}']\nnum_processes: 2\n",
    ],
)
def test_settings_in_yaml_are_plain_data(
    text: str, home: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "settings.yaml").write_text(text.format(canary))
    for words in (
        ("sft", "settings.yaml"),
        ("sft", "own.toml", "--accelerate-config=settings.yaml"),
    ):
        done = typed(capsys, *words)
        assert (done.code, canary.exists()) == (2, False), done.err
        assert "settings.yaml" in done.err or "--accelerate-config" in done.err


WITHOUT: dict[str, tuple[object, str]] = {  # a case, and its guard that is switched off
    "adapter as a pickle": (loading, "check_adapter"),
    "adapter's modules": (loading, "check_adapter"),
    "adapter's start from a file": (loading, "check_adapter"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_its_guard_an_adapter_is_taken(
    name: str,
    home: Path,
    canary: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The controls: the pickle is read (torch's own list stops it), the keys are heard."""
    words, plant, refused = ON_ADAPTERS[name]
    monkeypatch.setattr(*WITHOUT[name], lambda folder: None)
    plant(home / ADAPTED, canary)
    done = typed(capsys, *words)
    assert SETTINGS not in done.err, refused
    assert "UnpicklingError" in done.err if "pickle" in name else True


def test_without_the_hashes_a_link_is_exported(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of "a link to be exported"."""
    link_in_model(home / OWN, home / "canary")
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)
    done = typed(capsys, *EXPORT)
    assert done.code == 0, done.err
    assert (home / "out/notes.json").read_text() == '{"secret": 1}'
    assert files.HASHES_FILE not in {file.name for file in (home / "out").iterdir()}


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.starts_python("--version imports no torch")
def test_a_rank_imports_nothing_from_the_folder_that_it_works_in(
    tmp_path: Path, guarded: bool
) -> None:
    """Ranks start as ``python -m llmrec_cli``; unguarded (the control), a file there is run."""
    canary = tmp_path / "canary"
    (tmp_path / "typer.py").write_text(code(canary))
    own = (
        launch._choose_import_paths() if guarded else {"PYTHONPATH": str(Path(__file__).parents[2])}
    )
    command = [sys.executable, "-m", "llmrec_cli", "--version"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, check=False)
    assert canary.exists() != guarded
