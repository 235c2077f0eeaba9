"""A run's model card: README.md with the hub's metadata.

``gather_card`` reads the run, its data and its report; ``render_card`` fills the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from llmrec_cli import __version__
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.catalog import has_tokens
from llmrec_cli.data.prepared import read_manifest
from llmrec_cli.data.prompts import Template
from llmrec_cli.data.schema import GAP, RATING
from llmrec_cli.errors import ArtefactError
from llmrec_cli.methods import find_method
from llmrec_cli.pipeline.setup import CatalogueContext
from llmrec_cli.report.formatting import POLICY_NAMES
from llmrec_cli.serving.finished import FinishedRun
from llmrec_cli.tasks.base import load_operations
from llmrec_cli.utils.files import REPORT_FILE, read_json
from llmrec_cli.utils.text import build_markdown_table, clean_line, escape_markdown

Rows = Sequence[Sequence[str]]
_BACKTICKS = re.compile("`+")
_SEEN = ("keep", "remove")
_FIELD_NAMES = {RATING: "the user's rating", GAP: "the time since the item before"}
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


@dataclass(frozen=True)
class Card:
    """What a card says; every text is plain, and escaped where it stands."""

    metadata: Mapping[str, Any]  # of the hub: license, base_model, datasets, tags, ...
    results: Sequence[tuple[str, float]]  # metric and value, for the hub's own tables
    name: str
    summary: str
    description: str
    load_code: str  # Python; defines model and tokenizer
    load_notes: tuple[str, ...]
    rank_code: str | None  # Python, to run behind load_code; None: the task ranks no catalogue
    answer: str  # what the model answers with
    decoding: str
    unknown: str | None  # what rank.py's prompts lack of those in training; None: nothing
    example: str | None  # a prompt and two answers, of the rank-pair task
    sources: Rows  # name, bytes, SHA-256
    splits: Rows  # name, rows, users, targets
    preparation: str
    training: tuple[str, ...]
    evaluated_on: str  # names of the files
    protocol: str
    score_headings: tuple[str, ...]
    scores: Rows  # empty: not evaluated
    limits: tuple[str, ...]
    licence: str
    version: str


@dataclass(frozen=True)
class CardScores:
    """Figures of the test split; all empty where it was not evaluated."""

    protocol: str = ""
    headings: tuple[str, ...] = ()
    rows: Rows = ()
    headline: tuple[tuple[str, float], ...] = ()  # metric and mean, under the headline policy


def base_name(recipe: Recipe, wanted: Wanted) -> str | None:
    """What the base is called elsewhere; None for one that was made from nothing."""
    backbone = recipe.model.backbone
    if backbone == "scratch":
        return None
    return wanted.base_model or (Path(backbone).name if is_local(recipe) else backbone)


def is_local(recipe: Recipe) -> bool:
    """Whether the base is a folder of this machine rather than a name on the hub."""
    return Path(recipe.model.backbone).is_absolute()


def gather_card(finished: FinishedRun, context: CatalogueContext, wanted: Wanted) -> Card:
    """The card of a language model's run."""
    recipe = finished.recipe
    prepared_folders = _grounds(finished, context)
    base = base_name(recipe, wanted)
    is_adapter = recipe.model.tuning == "lora" and not wanted.merge
    scores = read_scores(finished.folder, finished.manifest)
    return Card(
        metadata=_metadata(finished, wanted, is_adapter=is_adapter),
        results=scores.headline,
        name=f"{finished.experiment} {finished.run}",
        summary=_summary(context, finished, base),
        description=recipe.description,
        load_code=_adapter_code(recipe, base) if is_adapter else FULL_CODE,
        load_notes=tuple(_load_notes(recipe, wanted, base, is_adapter=is_adapter)),
        rank_code=RANK_CODE if recipe.task.ranks_catalogue else None,
        answer="semantic ID" if has_tokens(context.prepared.items) else "title, in quotes",
        decoding=_decoding(recipe),
        unknown=_explain_unknown(context.encoder.template),
        example=load_operations(recipe.task).make_example(context),
        sources=[
            (source["name"] + use, f"{source['bytes']:,}", source["sha256"])
            for use, manifest in prepared_folders.items()
            for source in manifest["sources"]
        ],
        splits=[
            (name + use, *(f"{counts[key]:,}" for key in ("rows", "users", "targets")))
            for use, manifest in prepared_folders.items()
            for name, counts in manifest["splits"].items()
        ],
        preparation=" ".join(
            _preparation(use, manifest) for use, manifest in prepared_folders.items()
        ),
        training=tuple(_training(finished, base)),
        evaluated_on=", ".join(s["name"] for s in context.prepared.manifest["sources"]),
        protocol=scores.protocol,
        score_headings=scores.headings,
        scores=scores.rows,
        limits=(*LIMITS, f"It was trained on histories of at most {recipe.data.history} items."),
        licence=_licence(wanted),
        version=__version__,
    )


def _metadata(finished: FinishedRun, wanted: Wanted, *, is_adapter: bool) -> dict[str, Any]:
    recipe = finished.recipe
    on_hub = wanted.base_model or not is_local(recipe)
    named: dict[str, Any] = {
        "license": wanted.licence or "unknown",
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "sequential-recommendation", "llmrec", _method(finished)],
    }
    if recipe.model.is_pretrained and on_hub:
        named["base_model"] = base_name(recipe, wanted)
        named["base_model_relation"] = "adapter" if is_adapter else "finetune"
    if wanted.datasets:
        named["datasets"] = list(wanted.datasets)
    return named


def _method(finished: FinishedRun) -> str:
    stage = finished.run.section(finished.recipe)
    return getattr(stage, "method", "sft")


def _summary(context: CatalogueContext, finished: FinishedRun, base: str | None) -> str:
    start = f"{base}, fine-tuned" if base else "A small Llama, trained from scratch"
    if base and not finished.recipe.model.is_pretrained:
        start = f"The architecture of {base}, trained from random weights"
    n_items, n_entries = len(context.prepared.items), context.trie.n_leaves
    entries = "" if n_items == n_entries else f" ({n_entries:,} that it can tell apart)"
    return (
        f"{start}: {finished.recipe.task.summary}, from a catalogue of {n_items:,} items{entries}."
    )


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


def _explain_unknown(template: Template | None) -> str | None:
    if template is None or not template.interaction_fields:
        return None
    shown = " and ".join(_FIELD_NAMES[name] for name in template.interaction_fields)
    return (
        f"In training, prompts showed {shown} of each item of a history. rank.py knows items "
        "alone, so its prompts leave these out, and its lists may be worse for that."
    )


def _grounds(finished: FinishedRun, context: CatalogueContext) -> dict[str, Mapping[str, Any]]:
    """Manifests of the data, by what tells them apart: another domain may be evaluated on."""
    trained_on = read_manifest(finished.recipe.prepared_folder)
    if finished.recipe.eval.data is None:
        return {"": trained_on}
    return {" (trained on)": trained_on, " (evaluated on)": context.prepared.manifest}


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


def _training(finished: FinishedRun, base: str | None) -> Iterator[str]:
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
    yield f"method: {method}: {find_method('lml' if method == 'sft' else method).summary}"
    options = {k: v for k, v in stage.items() if k not in ("train", "method", "parent")}
    if options:
        yield f"its options: {json.dumps(options)}"
    yield f"prompts: {recipe.prompt.describe()}, at most {recipe.prompt.max_tokens} tokens"
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


# The figures of its report.


def read_scores(folder: Path, manifest: Mapping[str, Any]) -> CardScores:
    """What ``report.json`` says.

    Raises:
        ArtefactError: the report is damaged.
    """
    if not (folder / REPORT_FILE).is_file():
        return CardScores()
    try:
        return _read_figures(read_json(folder / REPORT_FILE), manifest)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ArtefactError(f"{folder / REPORT_FILE}: not a report of llmrec eval") from None


def _read_figures(report: Mapping[str, Any], manifest: Mapping[str, Any]) -> CardScores:
    protocol = report["protocol"]
    if "seen" in protocol:
        policies = sorted(_SEEN, key=lambda policy: policy != protocol["seen"])
        metrics = {POLICY_NAMES[policy]: report[policy]["metrics"] for policy in policies}
    else:
        metrics = {POLICY_NAMES["pairs"]: report["metrics"]}
    first = next(iter(metrics.values()))
    names = sorted((name for name in first if name != "ndcg@1"), key=_order_metric)  # which is hr@1
    rows = [
        (name.upper(), *(_format_interval(found[name]) for found in metrics.values()))
        for name in names
    ]
    return CardScores(
        _describe_protocol(report, manifest.get("opened", {}).get("test", 1)),
        ("metric", *metrics),
        rows,
        tuple((name, round(first[name]["mean"], 6)) for name in names),
    )


def _order_metric(name: str) -> tuple[str, int]:
    metric, _, cutoff = name.partition("@")
    return metric, int(cutoff or 0)


def _format_interval(found: Mapping[str, float | None]) -> str:
    if found["mean"] is None:
        return "-"
    low, high = (found[end] for end in ("low", "high"))
    ends = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
    return f"{found['mean']:.4f}{ends}"


def _describe_protocol(report: Mapping[str, Any], opened: int) -> str:
    protocol = report["protocol"]
    times = "once" if opened == 1 else f"{opened} times"
    found = (
        f"The {protocol['split']} split, {report['rows']:,} rows of {report['users']:,} users; "
        f"candidates: {protocol['candidates']}; it was opened {times} for this run."
    )
    if "decoder" in protocol:
        chosen = ", ".join(f"{key} = {value}" for key, value in protocol["decoder"].items())
        found += f" Decoder: {chosen}."
    return found


# As Markdown.


def render_card(card: Card) -> str:
    """The card as Markdown, behind its metadata in YAML."""
    made = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)  # nosec B701 # noqa: S701 - Markdown: every text goes through the filter md
    made.filters |= {"md": escape_markdown, "fenced": fence_code, "table": build_table}
    template = (
        files("llmrec_cli.serving.exported").joinpath("README.md.j2").read_text(encoding="utf-8")
    )
    return made.from_string(template).render(card=card, yaml=build_metadata_yaml(card))


def build_metadata_yaml(card: Card) -> str:
    """The metadata as the hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            task_name="sequential recommendation",
            dataset_type=(card.metadata.get("datasets") or ["own"])[0],
            dataset_name=clean_line(card.evaluated_on),
            dataset_split="test",
            metric_type=name,
            metric_value=value,
        )
        for name, value in card.results
    ]
    evaluated = {"model_name": clean_line(card.name), "eval_results": results} if results else {}
    metadata: dict[str, Any] = {**card.metadata, **evaluated}
    return ModelCardData(**metadata).to_yaml().rstrip()


def fence_code(text: str, language: str = "text") -> str:
    """A code block whose text cannot end it."""
    longest = max((len(found) for found in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def build_table(rows: Rows, headings: Sequence[str]) -> str:
    """Rows under headings; all but the first column to the right."""
    first, *others = [list(map(escape_markdown, row)) for row in (headings, *rows)]
    return build_markdown_table(first, others)
