"""Tiny pretrained models of every kind of head, and finished adapters on them, made on demand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.models.tokenizer import train_tokenizer
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.train import sft
from llmrec_cli.utils.progress import Silent

PEFT_SAYS = (  # for pytest's filterwarnings
    "ignore:`is_gradient_checkpointing`:FutureWarning",
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
    "ignore:Model with `tie_word_embeddings=True`:UserWarning",
    "ignore:fan_in_fan_out is set to:UserWarning",
)
DATA = {
    "titles": 'format = "amazon2018"\nreviews = "./reviews.json"\nmetadata = "./meta.json"',
    "ids": 'format = "semantic-ids"\nreviews = "./inter.json"\nindex = "./index.json"',
}
RECIPE = """
[data]
{data}
k_core = 0
history = 4
[model]
backbone = "./{base}"
tuning = "lora"
[model.lora]
r = 2
dropout = 0
targets = {targets}
[train]
rows = "window"
max_steps = 3
batch = 8
validate_rows = 2
validate_every = 99
learning_rate = 1e-1
"""
LLAMA = {"attention": ["q_proj", "v_proj"], "head": ["lm_head"], "embedding": ["embed_tokens"]}
GPT2 = {"attention": ["c_attn"], "head": ["lm_head"], "embedding": ["wte"]}
BASES = {"tied": LLAMA, "untied": LLAMA, "gpt2": GPT2}


def write_base(folder: Path) -> None:
    """A tiny pretrained model in the hub's layout; GPT-2's is tied, and of Conv1D."""
    tokenizer = train_tokenizer(["The user has bought these items before"], vocabulary=300)
    torch.manual_seed(0)
    model: Any
    if folder.name == "gpt2":
        size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 512}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size))
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=2,
            tie_word_embeddings=folder.name == "tied",
            **sizes,
        )
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(folder: Path) -> None:
    """Twelve items that 20 users bought, as titles and as semantic IDs."""
    index = {str(i): [f"<a_{i % 4}>", f"<b_{i // 4}>"] for i in range(12)}
    users = {str(u): [(u * 5 + t * 7) % 12 for t in range(6)] for u in range(20)}
    meta = [{"asin": f"item{i}", "title": f"title {i}"} for i in range(12)]
    reviews = [
        {
            "reviewerID": f"user{user}",
            "asin": f"item{item}",
            "overall": 5.0,
            "unixReviewTime": 1_500_000_000 + int(user) + 86_400 * time,
        }
        for user, items in users.items()
        for time, item in enumerate(items)
    ]
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "inter.json").write_text(json.dumps(users))
    for name, lines in (("meta", meta), ("reviews", reviews)):
        (folder / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def targets_of(base: str, targets: str) -> list[str] | str:
    names = BASES[base]
    if targets == "all":
        return "all-linear"
    return names["head"] + names["embedding"] if targets == "both" else names[targets]


class Home:
    """A working folder in which runs are made once, when a test asks for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_data(folder)
        for base in BASES:
            write_base(folder / base)

    def recipe(self, base: str, data: str, targets: str, *words: str) -> Recipe:
        """A recipe whose data are prepared."""
        name = "-".join([base, data, targets, *(word.partition("=")[2] for word in words)])
        file = self.folder / f"{name}.toml"
        named = json.dumps(targets_of(base, targets))
        file.write_text(RECIPE.format(data=DATA[data], base=base, targets=named))
        recipe = read_recipe(str(file), [f"out={self.folder / 'runs'}", *words])
        ready = self.folder / "prepared" / data
        if not ready.exists():
            prepare_data(recipe, Path)
            shutil.copytree(recipe.prepared_folder, ready)
        elif not recipe.prepared_folder.exists():
            shutil.copytree(ready, recipe.prepared_folder)
        return recipe

    def run(self, base: str, data: str, targets: str, *words: str) -> Path:
        """The folder of a finished run."""
        recipe = self.recipe(base, data, targets, *words)
        if not (recipe.folder / "sft").exists():
            sft(recipe, resume=False, progress=Silent())
        return recipe.folder / "sft"


def on_base(base: Path, adapter: Path) -> Any:
    """An adapter on its base, as its card says."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return PeftModel.from_pretrained(model, str(adapter))
