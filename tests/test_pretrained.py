"""Pretrained models, in the hub's layout: text prompts, LoRA, semantic IDs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import SMALL, llmrec, ok
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmrec_cli.engine import checkpoint
from llmrec_cli.models.tokenizer import train_tokenizer
from llmrec_cli.progress import Silent
from llmrec_cli.recipe.file import load_recipe
from llmrec_cli.stage import workbench
from llmrec_cli.stage.trained import load_policy


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained model in the hub's layout, whose generation_config samples."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-llama"
    tokenizer = train_tokenizer(["The user has bought these items before"], vocabulary=400)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    model.generation_config.do_sample = True
    model.generation_config.top_k = 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_pretrained_model_with_a_text_prompt(
    hub_folder: Path, tmp_path: Path, tuning: str
) -> None:
    words = [
        *SMALL,
        f"model.backbone={hub_folder}",
        f"model.tuning={tuning}",
        "prompt.template=items",
        "train.rows=window",
        "align.msl.parent=sft",
        "align.msl.tau=ats",
        "train.epochs=1",
    ]
    ok(llmrec(tmp_path, "prepare", "quickstart", *words))
    ok(llmrec(tmp_path, "sft", "quickstart", *words))
    for method in ("msl", "dmpo"):
        ok(llmrec(tmp_path, "align", "--method", method, "quickstart", *words))
    runs = ["--run", "sft", "--run", "align-msl", "--run", "align-dmpo"]
    shown = ok(llmrec(tmp_path, "eval", "quickstart", *runs, *words))
    assert "align-msl" in shown
    run = tmp_path / "runs/quickstart/align-msl"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["facts"]["parent"] == "sft"
    assert manifest["outcome"]["method"]["tau"] == pytest.approx(1.5, abs=1)
    if tuning == "lora":
        assert (run / "adapter" / "adapter_model.safetensors").is_file()
        assert not (run / "model").exists()
    else:
        AutoModelForCausalLM.from_pretrained(run / "model")
        AutoTokenizer.from_pretrained(run / "model")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
def test_semantic_ids_on_a_pretrained_model_train_and_save_their_tokens(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {str(i): [f"<a_{i % 5}>", f"<b_{i // 5}>"] for i in range(30)}
    users = {str(u): [(u * 7 + t * 3) % 30 for t in range(8)] for u in range(60)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "inter.json").write_text(json.dumps(users))
    recipe = tmp_path / "ids.toml"
    recipe.write_text(
        f"""
        [data]
        format = "semantic-ids"
        reviews = "./inter.json"
        index = "./index.json"
        k_core = 0
        [model]
        backbone = "{hub_folder}"
        tuning = "lora"
        [train]
        rows = "sequence"
        epochs = 1
        batch = 16
        [align.msl]
        [eval]
        resamples = 100
        """
    )
    shown = ok(llmrec(tmp_path, "run", "ids.toml"))
    assert "align-msl" in shown
    from safetensors import safe_open

    with safe_open(tmp_path / "runs/ids/sft/adapter/adapter_model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.endswith("tokens_delta")]
        assert len(names) == 2, "new rows of embedding and head"
        assert all(file.get_slice(name).get_shape()[0] == 11 for name in names)

    monkeypatch.chdir(tmp_path)
    bench = workbench.open_workbench(load_recipe("ids.toml"), Silent())
    drawn = []
    for _ in range(2):
        torch.rand(1)  # whatever was drawn before must not matter
        drawn.append(checkpoint.trained_weights(load_policy(bench, None, train=True)))
    assert drawn[0].keys() == drawn[1].keys()
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
