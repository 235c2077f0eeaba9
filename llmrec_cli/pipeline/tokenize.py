"""``llmrec tokenize``: semantic IDs of a prepared catalogue.

    prepared folder -> a vector per item -> codes, level by level -> an ID per item -> tokens/
                       (encoder, baseline)  (quantizer)             (collisions)

The folder ``out/name/tokens`` holds index.json (item id -> tokens), codebooks.safetensors,
report.json, facts.json (what they were made from) and files.json (hashes).  It appears whole or not
at all.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.tokens import BACKBONE, TokensSection
from llmrec_cli.data.index import (
    COMMAND,
    INDEX_FILE,
    ITEMS_FACT,
    SETTINGS_FACT,
    Index,
    list_settings,
    read_code,
    read_index,
    require_same_id_settings,
    require_same_items,
    spell_code,
)
from llmrec_cli.data.prepared import Prepared, load_prepared, require_same_data
from llmrec_cli.data.schema import ITEM_ID, ITEMS_FILE
from llmrec_cli.errors import ArtefactError, DataError, MissingRunError, RecipeError
from llmrec_cli.models.loading import DTYPES
from llmrec_cli.models.text_encoder import (
    hash_text_encoder,
    load_text_encoder,
    open_text_reader,
)
from llmrec_cli.pipeline import loading
from llmrec_cli.pipeline.setup import base_source, make_accelerator, open_item_context
from llmrec_cli.runs.run import baseline_run
from llmrec_cli.tokens.collisions import RULES, Code, Distances
from llmrec_cli.tokens.quality import measure_quality
from llmrec_cli.tokens.quantizers import find_quantizer
from llmrec_cli.tokens.quantizers.contract import Codes, Tensors
from llmrec_cli.tokens.vectors import (
    describe_repeats,
    draw_vectors,
    hash_vectors,
    join_blocks,
    render_texts,
    require_finite,
)
from llmrec_cli.training.checkpoint import WEIGHTS
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.item_scores import load_vectors
from llmrec_cli.utils.files import (
    FACTS_FILE,
    MODEL_FOLDER,
    REPORT_FILE,
    hash_file,
    read_json,
    translate_tensor_errors,
    write_folder,
    write_json,
    write_safetensors,
)
from llmrec_cli.utils.locks import lock_to_make
from llmrec_cli.utils.progress import Progress

CODEBOOKS_FILE: Final = "codebooks.safetensors"
VECTORS_FOLDER: Final = "vectors"  # of an experiment: what the encoder made of the texts
Report = dict[str, Any]


@dataclass(frozen=True)
class Tokenized:
    """The semantic IDs of an experiment."""

    folder: Path
    report: Report  # ``report.json``
    reused: bool  # they were there already


def tokenize(recipe: Recipe, *, append: bool = False, progress: Progress) -> Tokenized:
    """Make the semantic IDs of a recipe's catalogue; those that are there are kept.

    Args:
        append: the catalogue has grown: give the new items IDs, and move no old one.

    Raises:
        RecipeError: the recipe makes none.
        DataError: nothing prepared, too few items, or vectors that are no numbers.
        ArtefactError: IDs are there, but of another catalogue or other settings; or the encoder
            or baseline cannot be used.
    """
    if recipe.id_tokens is None:
        raise RecipeError(
            "the recipe names items by their titles, so there are no IDs to make; expected "
            '[tokens] with kind = "semantic-id"'
        )
    prepared = load_prepared(recipe.prepared_folder)
    require_same_data(prepared.folder, prepared.manifest, recipe.data)
    folder = recipe.tokens_folder
    if append and not folder.is_dir():
        raise MissingRunError(f"{folder}: no IDs yet that others could be appended to", COMMAND)
    if found := _read_made(recipe, prepared, append=append):
        return found
    ranks = Ranks(make_accelerator(recipe))
    work = partial(_make_alone, recipe, prepared, ranks, append, progress)
    ranks.first(work, folder.with_name(f".{folder.name}-group.lock"))
    made = _read_made(recipe, prepared, append=False)
    if made is None:
        raise ArtefactError(f"{folder}: was removed while it was made; run again: {COMMAND}")
    return Tokenized(made.folder, made.report, reused=False)


def _read_made(recipe: Recipe, prepared: Prepared, *, append: bool) -> Tokenized | None:
    """The IDs that are there; None: there are none, or new items want to be appended.

    Raises:
        ArtefactError: they are of another catalogue (not with ``append``), or other settings.
    """
    folder = recipe.tokens_folder
    if not folder.is_dir():
        return None
    index = read_index(folder)
    require_same_id_settings(recipe, index.settings)
    if append and index.facts[ITEMS_FACT] != prepared.manifest["files"][ITEMS_FILE]["sha256"]:
        return None
    require_same_items(index, prepared.manifest)
    return Tokenized(folder, read_json(folder / REPORT_FILE), reused=True)


def _make_alone(
    recipe: Recipe, prepared: Prepared, ranks: Ranks, append: bool, progress: Progress
) -> None:
    """Make the folder, unless another process did meanwhile."""
    with lock_to_make(recipe.tokens_folder, progress.say):
        if _read_made(recipe, prepared, append=append) is None:
            old = read_index(recipe.tokens_folder) if append else None
            _write_tokens(recipe, prepared, ranks, old, progress)


def _write_tokens(
    recipe: Recipe, prepared: Prepared, ranks: Ranks, old: Index | None, progress: Progress
) -> None:
    """Vectors, codes, IDs, report; written as one folder.

    Args:
        old: IDs that stay as they are; None: there are none.
    """
    section, ids = _require_section(recipe), prepared.items[ITEM_ID].tolist()
    quantizer, size = find_quantizer(section.quantizer), section.size
    _require_items(section, len(ids))
    if old is not None and section.source.baseline:
        raise RecipeError(
            f'--append: vectors = "{section.vectors}" come from a baseline that was trained on the '
            'old catalogue; expected vectors = "text", or new IDs for all items under another name'
        )
    begun, notes = time.monotonic(), list[str]()
    vector_ID, facts = _make_vectors(recipe, prepared, ranks, old, notes, progress)
    embedded = time.monotonic()
    if old is None:
        units = quantizer.work(section.options, size)
        with progress.track(section.quantizer, units, unit="rounds") as advance:
            tensors = quantizer.fit(section.options, vector_ID, size, section.seed, advance)
    else:
        tensors = _read_codebooks(old.folder / CODEBOOKS_FILE)
    with translate_tensor_errors(recipe.tokens_folder / CODEBOOKS_FILE):
        codes = quantizer.encode(section.options, tensors, vector_ID, size)
    tokens = _assign_ids(section, ids, codes, {} if old is None else old.tokens)
    code_IL = codes.code_IL.numpy()
    quality = measure_quality(code_IL, size.codes, codes.error_L, prepared.split("train"))
    notes += quality.list_warnings(size.codes)
    report = {
        "quality": quality.to_json(),
        "collisions": section.collisions,
        "ids": len({tuple(tokens[name]) for name in ids}),
        "new items": sum(old is None or name not in old.tokens for name in ids),
        "notes": notes,
        "seconds": {
            "vectors": round(embedded - begun, 1),
            "codes": round(time.monotonic() - embedded, 1),
        },
    }
    facts |= {
        SETTINGS_FACT: list_settings(recipe),
        ITEMS_FACT: prepared.manifest["files"][ITEMS_FILE]["sha256"],
        "vectors": hash_vectors(vector_ID),
    }
    if old is not None:
        facts |= old.describe_append([name for name in ids if name not in old.tokens])

    def fill(temporary: Path) -> None:
        write_json(temporary / INDEX_FILE, tokens)
        write_safetensors(temporary / CODEBOOKS_FILE, _make_contiguous(tensors))
        write_json(temporary / REPORT_FILE, report)
        write_json(temporary / FACTS_FILE, facts)

    write_folder(recipe.tokens_folder, fill)


def _require_section(recipe: Recipe) -> TokensSection:
    if recipe.id_tokens is None:
        raise RecipeError('expected [tokens] with kind = "semantic-id"')
    return recipe.id_tokens


def _require_items(section: TokensSection, items: int) -> None:
    if items < section.codes:
        raise DataError(
            f"tokens.codes = {section.codes:,}: the catalogue has {items:,} items; expected at "
            "most as many codes as items"
        )


def _make_contiguous(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def _read_codebooks(file: Path) -> dict[str, Tensor]:
    with translate_tensor_errors(file):
        return load_file(file)


# Vectors.


def _make_vectors(
    recipe: Recipe,
    prepared: Prepared,
    ranks: Ranks,
    old: Index | None,
    notes: list[str],
    progress: Progress,
) -> tuple[Tensor, dict[str, Any]]:
    """The vectors [I, D] of a catalogue, fp32 on the CPU, and what identifies their source.

    Args:
        old: IDs whose source must be the same.
        notes: gets what a reader of the report has to know.

    Raises:
        DataError, ArtefactError: as ``tokenize``.
    """
    section, ids = _require_section(recipe), prepared.items[ITEM_ID].tolist()
    blocks, facts = list[Tensor](), dict[str, Any]()
    if section.source.baseline:  # first: it may not be trained yet
        run = baseline_run(recipe, section.baseline)
        model = loading.load_sequential(open_item_context(recipe, progress), section.baseline)
        facts["baseline"] = hash_file(run.folder / MODEL_FOLDER / WEIGHTS)
        blocks.append(model.head().weight_VD.detach().float().cpu().clone())
        require_finite(blocks[0], ids, f"[baseline.{section.baseline}]")
    if section.source.texts:
        facts["encoder"] = _identify_encoder(recipe)
        _require_same_encoder(recipe, facts["encoder"], old)
        blocks.append(_embed_items(recipe, prepared, ranks, facts["encoder"], notes, progress))
    return join_blocks(blocks or [draw_vectors(ids, section.seed)]), facts


def _name_encoder(recipe: Recipe) -> tuple[str, str | None, str]:
    """Source and revision of the encoder, and the key that names it."""
    section = _require_section(recipe)
    if section.encoder == BACKBONE:
        return base_source(recipe), recipe.model.revision, "model.backbone"
    return section.encoder, section.revision, "tokens.encoder"


def _identify_encoder(recipe: Recipe) -> str:
    return hash_text_encoder(*_name_encoder(recipe))


def _require_same_encoder(recipe: Recipe, found: str, old: Index | None) -> None:
    before = found if old is None else old.facts.get("encoder")
    if before != found:
        raise ArtefactError(
            f"{recipe.tokens_folder}: made with an encoder of hash {before}, the one of now has "
            f"{found}; new items need the same one"
        )


def _embed_items(
    recipe: Recipe,
    prepared: Prepared,
    ranks: Ranks,
    encoder_hash: str,
    notes: list[str],
    progress: Progress,
) -> Tensor:
    """Vectors of the items' texts; those that were made before are read."""
    section, ids = _require_section(recipe), prepared.items[ITEM_ID].tolist()
    texts = render_texts(section.text, prepared.items)
    if (line := describe_repeats(texts)) is not None:
        notes.append(line)
    source, revision, key = _name_encoder(recipe)
    dtype = DTYPES[recipe.model.dtype] if section.encoder == BACKBONE else torch.float32
    reader = open_text_reader(source, revision, section.max_tokens, key)
    if cut := reader.count_cut(texts):
        notes.append(
            f"{cut:,} of {len(texts):,} texts are longer than the encoder reads "
            f"(tokens.max_tokens = {section.max_tokens}): their ends are left out"
        )

    def compute() -> Tensor:
        encoder = load_text_encoder(source, revision, reader, ranks.device, key, dtype=dtype)
        with progress.track("texts", len(texts), unit="texts") as advance:
            vector_ID = encoder.embed_texts(texts, section.batch, advance)
        require_finite(vector_ID, ids, f"{key} = {source!r}")
        return vector_ID

    facts = {
        "encoder": encoder_hash,
        "texts": _hash_texts(ids, texts),
        "max_tokens": str(section.max_tokens),
        "dtype": str(dtype),
    }
    return load_vectors(recipe.folder / VECTORS_FOLDER, facts, compute, progress.say)


def _hash_texts(ids: Sequence[str], texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([list(ids), list(texts)]).encode()).hexdigest()


# Codes and IDs.


def _assign_ids(
    section: TokensSection, ids: Sequence[str], codes: Codes, old: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """The tokens of every item, old ones as they are.

    Raises:
        ArtefactError: old tokens are not as this program spells them.
        DataError: the rule for collisions finds no free code.
    """
    taken = [_read_codes(tokens) for tokens in old.values()]
    new = [at for at, name in enumerate(ids) if name not in old]
    code_NL: list[Code] = [tuple(codes.code_IL[at].tolist()) for at in new]
    found = RULES[section.collisions](code_NL, _measure_from(codes, new), taken)
    tokens = dict(old)
    for at, code in zip(new, found, strict=True):
        tokens[ids[at]] = [spell_code(level, one) for level, one in enumerate(code)]
    return tokens


def _measure_from(codes: Codes, new: Sequence[int]) -> Distances:
    """Distances of new items to the codes of the last level, by their places among the new."""

    def measure(places: Sequence[int]) -> Any:
        rows = torch.tensor([new[place] for place in places])
        return torch.cdist(codes.last_IK[rows].float(), codes.last_CK.float()).numpy()

    return measure


def _read_codes(tokens: Sequence[str]) -> Code:
    codes = [read_code(token, level) for level, token in enumerate(tokens)]
    known = [code for code in codes if code is not None]
    if len(known) < len(codes):
        raise ArtefactError(f"{INDEX_FILE}: the ID {list(tokens)}: expected tokens such as <a_12>")
    return tuple(known)


# What a person is told.


def describe_tokens(made: Tokenized) -> list[str]:
    """The quality report as lines of text."""
    report, quality = made.report, made.report["quality"]
    items = quality["items"]
    lines = [
        f"{items:,} items, {quality['distinct']:,} distinct codes; {quality['colliding']:,} items "
        f"({quality['colliding'] / items:.1%}) share theirs, at most {quality['largest']:,} "
        f'together; collisions = "{report["collisions"]}": {report["ids"]:,} IDs',
        "",
        "level  codes in use  entropy  variance lost",
    ]
    for number, level in enumerate(quality["levels"], start=1):
        lost = "" if level["lost"] is None else f"{level['lost']:.1%}"
        lines.append(f"{number:>5}  {level['used']:>12,}  {level['entropy']:>7.3f}  {lost:>13}")
    if quality["neighbourhood"]:
        lines += ["", "common beginning  neighbours in histories  by chance  ratio"]
    for found in quality["neighbourhood"]:
        ratio = f"{found['share'] / found['chance']:.1f}" if found["chance"] else "-"
        tokens = "1 token" if found["depth"] == 1 else f"{found['depth']} tokens"
        lines.append(f"{tokens:>16}  {found['share']:>23.1%}  {found['chance']:>9.1%}  {ratio:>5}")
    return [*lines, *([""] if report["notes"] else []), *report["notes"]]
