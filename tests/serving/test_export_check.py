"""Every export gives the run's scores when plain transformers and peft open it, or none is left."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec_cli.errors import ExportError
from llmrec_cli.serving import export as export_files
from llmrec_cli.serving import export as export_module
from llmrec_cli.serving.card import Wanted
from llmrec_cli.serving.export import check_export, export
from llmrec_cli.serving.finished import open_finished, open_finished_context
from llmrec_cli.utils.progress import Silent
from tests.experiments import typed
from tests.models.sample_adapters import BASES, PEFT_SAYS, Home, on_base

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(words) for words in PEFT_SAYS)]
TITLES = [
    (b, "titles", t) for b in BASES for t in ("attention", "head", "embedding", "both", "all")
]
IDS = [(base, "ids", targets) for base in BASES for targets in ("attention", "all")]
IDS += [("tied", "ids", "head"), ("gpt2", "ids", "head")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("exports"))


@torch.no_grad()
def logits_of(model: Any, vocabulary: int) -> torch.Tensor:
    """Of the same random token ids for every model."""
    ids = torch.randint(vocabulary, (3, 7), generator=torch.Generator().manual_seed(0))
    logits: torch.Tensor = model.eval()(input_ids=ids).logits
    return logits


@pytest.mark.parametrize(("base", "data", "targets"), TITLES + IDS)
def test_merged_and_not_an_export_is_the_run(
    base: str, data: str, targets: str, home: Home, tmp_path: Path
) -> None:
    run = home.run(base, data, targets)
    for merge in (True, False):
        export(run, tmp_path / f"merged-{merge}", Wanted(merge=merge), progress=Silent())
    vocabulary = len(AutoTokenizer.from_pretrained(run / "adapter"))
    trained = logits_of(on_base(home.folder / base, run / "adapter"), vocabulary)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged-True")
    apart = on_base(home.folder / base, tmp_path / "merged-False")
    torch.testing.assert_close(logits_of(merged, vocabulary), trained, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits_of(apart, vocabulary), trained, rtol=0, atol=1e-4)
    before = AutoModelForCausalLM.from_pretrained(home.folder / base)
    known = before.get_input_embeddings().num_embeddings
    moved = logits_of(merged, known)[..., :known] - logits_of(before, known)
    assert moved.abs().max() > 0.1, "the adapter acts, so that a wrong place would show"
    untied = base == "untied" or targets in ("head", "embedding", "both")
    assert merged.config.tie_word_embeddings != untied
    weights = [merged.get_input_embeddings().weight, merged.get_output_embeddings().weight]
    assert (weights[0].data_ptr() != weights[1].data_ptr()) == untied


@pytest.mark.parametrize("base", ["tied", "gpt2"])
@pytest.mark.parametrize("targets", ["head", "embedding", "both"])
def test_a_merge_into_the_shared_matrix_is_refused(
    base: str,
    targets: str,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The wrong merge that was once shipped: one delta in both places."""
    run = home.run(base, "titles", targets)
    monkeypatch.setattr(export_files, "untie_adapted", lambda model: None)
    capsys.readouterr()
    ended = typed(capsys, "export", "--run", str(run), "--to", str(tmp_path / "out"), "--merge")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.count(": error: ") == 1
    line = ended.err.splitlines()[-1]
    assert "the export is another model than the run: log-probability of " in line
    assert "nothing was written" in line
    assert list(tmp_path.iterdir()) == []


def test_rows_of_new_tokens_that_are_left_out_are_noticed(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base's new rows are drawn: an export that stands on them is another model each time."""
    run = home.run("untied", "ids", "attention")

    def forget_one(source: Path, folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        indices = config["trainable_token_indices"]
        config["trainable_token_indices"] = {name: found[:-1] for name, found in indices.items()}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        file = folder / "adapter_model.safetensors"
        kept = {n: x[:-1] if n.endswith("tokens_delta") else x for n, x in load_file(file).items()}
        save_file(kept, file, metadata={"format": "pt"})

    monkeypatch.setattr(export_module, "copy_result", forget_one)
    with pytest.raises(ExportError, match="another model than the run"):
        export(run, tmp_path / "out", Wanted(), progress=Silent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("merge", [False, True])
def test_weights_that_are_written_wrongly_are_noticed(
    dtype: str, merge: bool, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged head, or LoRA's own matrices, larger than they are."""
    run = home.run("untied", "titles", "all", f"model.dtype={dtype}")

    def write_ranking(context: object, folder: Path) -> None:
        [file] = folder.glob("*.safetensors")
        larger = "lm_head" if merge else "lora_B"
        tensors = {n: x * (1.1 if larger in n else 1) for n, x in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(export_module, "write_ranking", write_ranking)
    with pytest.raises(ExportError, match="as transformers opens the export"):
        export(run, tmp_path / "out", Wanted(merge=merge), progress=Silent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_round_a_merge_and_nothing_else(
    dtype: str, merge: bool, home: Home, tmp_path: Path
) -> None:
    run = home.run("tied", "titles", "all", f"model.dtype={dtype}")
    made = export(run, tmp_path / "out", Wanted(merge=merge), progress=Silent())
    assert (made.difference > 1e-5) == merge
    if merge:
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert merged.dtype == getattr(torch, dtype)
        words = ["model.dtype=float32"]
        made = export(run, tmp_path / "32", Wanted(merge=True), overrides=words, progress=Silent())
        assert made.difference < 1e-5, "of weights that are written unrounded"


@pytest.mark.parametrize("targets", ["head", "embedding", "both"])
def test_a_wrong_merge_is_refused_in_sixteen_bits_too(
    targets: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = home.run("tied", "titles", targets, "model.dtype=bfloat16")
    export(run, tmp_path / "out", Wanted(merge=True), progress=Silent())
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(export_files, "untie_adapted", lambda model: None)
    with pytest.raises(ExportError, match="another model than the run"):
        export(run, tmp_path / "out", Wanted(merge=True), progress=Silent())
    assert list(tmp_path.iterdir()) == []


def test_without_rows_the_items_themselves_are_compared(home: Home, tmp_path: Path) -> None:
    finished = open_finished(home.run("tied", "ids", "attention"))
    context = export_files.plain_context(open_finished_context(finished, "cpu"))
    empty = replace(context, prepared=replace(context.prepared, manifest={"files": {}}))
    export_files.copy_result(finished.folder / "adapter", tmp_path)
    assert check_export(finished, empty, tmp_path, merged=False) < 1e-5
