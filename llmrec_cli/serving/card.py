"""What a run's model card says, gathered from the run, its data and its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec_cli import __version__
from llmrec_cli.data.columns import COUNT, TITLE
from llmrec_cli.data.leaves import has_tokens
from llmrec_cli.data.prompts import load_rank_template
from llmrec_cli.data.rank_wording import Question
from llmrec_cli.data.store import read_manifest
from llmrec_cli.methods import find
from llmrec_cli.recipe.recipe import Recipe
from llmrec_cli.report.model_card import Card
from llmrec_cli.serving.card_scores import read_scores
from llmrec_cli.serving.finished import Finished
from llmrec_cli.stage.workbench import Workbench

FULL_CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder; or huggingface_hub.snapshot_download("OWNER/NAME")
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()"""
ADAPTER_CODE = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder; or huggingface_hub.snapshot_download("OWNER/NAME")
tokenizer = AutoTokenizer.from_pretrained(folder)
base = AutoModelForCausalLM.from_pretrained({base}, dtype={dtype})
if len(tokenizer) > base.get_input_embeddings().num_embeddings:
    base.resize_token_embeddings(len(tokenizer))  # the adapter brings the rows of new tokens
model = PeftModel.from_pretrained(base, folder).eval()"""
RANK_CODE = """\
from rank import Catalogue, rank

catalogue = Catalogue.read(folder)
history = [item["item_id"] for item in catalogue.items[:2]]  # ids or titles, oldest first
for probability, item in rank(model, tokenizer, catalogue, history, k=10):
    print(f"{probability:.4f}", item["item_id"], item["title"])"""
LIMITS = (
    "For research on recommendation: it ranks the items of one catalogue for a history of them; "
    "other text that it writes means nothing.",
    "It knows no item outside this catalogue, and nothing that happened after its data ended.",
    "It repeats what its data show, popularity and other biases included; its probabilities are "
    "not measured for calibration.",
    "Titles come from the data as they are; they may be wrong, odd or offensive.",
)


@dataclass(frozen=True)
class Wanted:
    """What the user decides about an export."""

    merge: bool = False  # the adapter's weights into the base's
    licence: str | None = None  # the hub's name of one
    base_model: str | None = None  # the hub's name of a base that is a local folder
    datasets: tuple[str, ...] = ()  # the hub's names


def base_name(recipe: Recipe, wanted: Wanted) -> str | None:
    """What the base is called elsewhere; None for one that was made from nothing."""
    backbone = recipe.model.backbone
    if backbone == "scratch":
        return None
    return wanted.base_model or (Path(backbone).name if is_local(recipe) else backbone)


def is_local(recipe: Recipe) -> bool:
    """Whether the base is a folder of this machine rather than a name on the hub."""
    return Path(recipe.model.backbone).is_absolute()


def gather_card(finished: Finished, bench: Workbench, wanted: Wanted) -> Card:
    """The card of a language model's run."""
    recipe = finished.recipe
    grounds = _grounds(finished, bench)
    ranks = recipe.prompt.task == "generate"
    base = base_name(recipe, wanted)
    is_adapter = recipe.model.tuning == "lora" and not wanted.merge
    scores = read_scores(finished.folder, finished.manifest)
    return Card(
        metadata=_metadata(finished, wanted, is_adapter=is_adapter),
        results=scores.headline,
        name=f"{finished.experiment} {finished.run}",
        summary=_summary(bench, finished, base),
        description=recipe.description,
        load_code=_adapter_code(recipe, base) if is_adapter else FULL_CODE,
        load_notes=tuple(_load_notes(recipe, wanted, base, is_adapter=is_adapter)),
        rank_code=RANK_CODE if ranks else None,
        answer="semantic ID" if has_tokens(bench.prepared.items) else "title, in quotes",
        decoding=_decoding(recipe),
        example=None if ranks else _example(bench),
        sources=[
            (source["name"] + use, f"{source['bytes']:,}", source["sha256"])
            for use, manifest in grounds.items()
            for source in manifest["sources"]
        ],
        splits=[
            (name + use, *(f"{counts[key]:,}" for key in ("rows", "users", "targets")))
            for use, manifest in grounds.items()
            for name, counts in manifest["splits"].items()
        ],
        preparation=" ".join(_preparation(use, manifest) for use, manifest in grounds.items()),
        training=tuple(_training(finished, base)),
        evaluated_on=", ".join(s["name"] for s in bench.prepared.manifest["sources"]),
        protocol=scores.protocol,
        score_headings=scores.headings,
        scores=scores.rows,
        limits=(*LIMITS, f"It was trained on histories of at most {recipe.data.history} items."),
        licence=_licence(wanted),
        version=__version__,
    )


def _metadata(finished: Finished, wanted: Wanted, *, is_adapter: bool) -> dict[str, Any]:
    recipe = finished.recipe
    on_hub = wanted.base_model or not is_local(recipe)
    named: dict[str, Any] = {
        "license": wanted.licence or "unknown",
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "sequential-recommendation", "llmrec", _method(finished)],
    }
    if recipe.model.backbone != "scratch" and on_hub:
        named["base_model"] = base_name(recipe, wanted)
        named["base_model_relation"] = "adapter" if is_adapter else "finetune"
    if wanted.datasets:
        named["datasets"] = list(wanted.datasets)
    return named


def _method(finished: Finished) -> str:
    stage = finished.run.section(finished.recipe)
    return getattr(stage, "method", "sft")


def _summary(bench: Workbench, finished: Finished, base: str | None) -> str:
    start = f"{base}, fine-tuned" if base else "A small Llama, trained from scratch"
    n_items, n_entries = len(bench.prepared.items), bench.trie.n_leaves
    entries = "" if n_items == n_entries else f" ({n_entries:,} that it can tell apart)"
    task = "recommends the next item of a history"
    if finished.recipe.prompt.task != "generate":
        task = "says which of two items a user likes more"
    return f"{start}: {task}, from a catalogue of {n_items:,} items{entries}."


def _adapter_code(recipe: Recipe, base: str | None) -> str:
    revision = recipe.model.revision
    named = repr(base) + (f", revision={revision!r}" if revision else "")
    return ADAPTER_CODE.format(base=named, dtype=repr(recipe.model.dtype))


def _load_notes(
    recipe: Recipe, wanted: Wanted, base: str | None, *, is_adapter: bool
) -> Iterator[str]:
    if is_adapter and is_local(recipe) and not wanted.base_model:
        yield f"The base was a local folder, {base}: put the path of yours in its place."
    if recipe.model.quantize != "none":
        how = f"The adapter was trained on a base quantized to {recipe.model.quantize}"
        after = "merged into whole weights" if wanted.merge else "load it so for the same figures"
        yield f"{how} (bitsandbytes), and {after}."


def _decoding(recipe: Recipe) -> str:
    decode = recipe.eval.decode
    among = "the tokens that continue some item" if decode.mask == "before" else "all tokens"
    rule = f"Each token's probability is among {among}"
    if decode.temperature != 1:
        rule += f", logits divided by {decode.temperature:g}"
    if decode.length_penalty:
        rule += f"; the order is by log-probability / length^{decode.length_penalty:g}"
    return f"{rule}. Probabilities are over the whole catalogue, the history included."


def _example(bench: Workbench) -> str:
    """A prompt of the rank-pair task about the most popular items, and both answers."""
    popular = bench.prepared.items.sort_values(COUNT, ascending=False, kind="stable")
    one, two, liked, other = (popular[TITLE].dropna().tolist() * 4)[:4]
    template = load_rank_template(bench.recipe.prompt_for_eval.template, Path)
    prompt = template.render(Question((one, two), liked, other))
    answers = (template.render_answer(*pair) for pair in ((liked, other), (other, liked)))
    return "\n\n".join([prompt, *answers])


def _grounds(finished: Finished, bench: Workbench) -> dict[str, Mapping[str, Any]]:
    """Manifests of the data, by what tells them apart: another domain may be evaluated on."""
    trained_on = read_manifest(finished.recipe.prepared)
    if finished.recipe.eval.data is None:
        return {"": trained_on}
    return {" (trained on)": trained_on, " (evaluated on)": bench.prepared.manifest}


def _preparation(use: str, manifest: Mapping[str, Any]) -> str:
    data = manifest["data"]
    kept = {
        key: data[key]
        for key in ("format", "k_core", "duplicates", "min_rating", "start", "end", "untitled")
        if data.get(key) is not None
    }
    how = ", ".join(f"{key} = {value}" for key, value in kept.items())
    split = f"Split{use}: {data['split']}, seed {manifest['seed']}"
    return f"{split}. Cleaning: {how}. Histories: at most {data['history']} items."


def _training(finished: Finished, base: str | None) -> Iterator[str]:
    recipe, manifest = finished.recipe, finished.manifest
    stage, model = manifest["settings"]["stage"], recipe.model
    train = stage["train"]
    start = base or "scratch"
    if model.revision:
        start += f" ({model.revision})"
    yield f"lineage: {' -> '.join([start, *manifest['facts']['lineage'][1:], finished.run.name])}"
    lora = (
        f"LoRA, r = {model.lora.r}, alpha = {model.lora.alpha:g}: {', '.join(model.lora.targets)}"
    )
    yield f"tuning: {lora if model.tuning == 'lora' else 'all weights'}; {model.dtype}"
    method = _method(finished)
    yield f"method: {method}: {find('lml' if method == 'sft' else method).summary}"
    options = {k: v for k, v in stage.items() if k not in ("train", "method", "parent")}
    if options:
        yield f"its options: {json.dumps(options)}"
    yield f"prompts: {Path(recipe.prompt.template).name}, at most {recipe.prompt.max_tokens} tokens"
    outcome = manifest["outcome"]
    yield (
        f"updates: {outcome['steps']}, batches of {train['batch']} {train['rows']} rows, AdamW at "
        f"{train['learning_rate']:g}, seed {recipe.seed}; the checkpoint of update "
        f"{outcome['best_step']} has the best {train['select']} on validation"
    )
    versions = [
        f"{name} {manifest['packages'][name]}" for name in ("torch", "transformers", "peft")
    ]
    yield f"llmrec {manifest['llmrec']}, {', '.join(versions)}"


def _licence(wanted: Wanted) -> str:
    if wanted.licence:
        return (
            f"{wanted.licence}, as whoever exported the model states. The terms of the base model "
            "and of the data apply beside it."
        )
    return (
        "To be filled in before this is given to anybody (license, above): the terms of the base "
        "model and of the data decide."
    )
