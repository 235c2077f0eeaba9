"""What an exported folder holds beside its card: weights, tokenizer, catalogue, prompt, rank.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from llmrec_cli.data.columns import COUNT, ITEM_ID, TITLE
from llmrec_cli.data.leaves import has_tokens
from llmrec_cli.errors import ArtefactError
from llmrec_cli.files import ADAPTER_FOLDER, HASHES, read_json, write_json
from llmrec_cli.models.backbone import untie_adapted
from llmrec_cli.recipe.model import TREE_ATTENTION
from llmrec_cli.serving.finished import Finished
from llmrec_cli.stage.base import prompt_template
from llmrec_cli.stage.trained import load_policy
from llmrec_cli.stage.workbench import Workbench

CATALOGUE_FILE: Final = "catalogue.jsonl"
SETTINGS_FILE: Final = "recommender.json"
RANK_FILE: Final = "rank.py"
_OF_THIS_MACHINE: Final = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
_SCANNED: Final = (".json", ".md", ".py", ".jinja", ".txt")
_DATA: Final = ("tokenizer.json", "vocab.json")  # texts of their own, which may look like paths


def copy_result(source: Path, folder: Path, *, leave_out: tuple[str, ...] = ()) -> None:
    """The files of a run's ``model/`` or ``adapter/``, byte for byte, without our own."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.startswith((HASHES, "README", *leave_out)):
            shutil.copyfile(file, folder / file.name)


def plain_bench(bench: Workbench) -> Workbench:
    """The same run on a base of plain weights, with an attention that every machine has."""
    model = bench.recipe.model
    attention = model.attention if model.attention in TREE_ATTENTION else "sdpa"
    section = model.model_copy(update={"quantize": "none", "attention": attention})
    return replace(bench, recipe=bench.recipe.model_copy(update={"model": section}))


def write_merged(finished: Finished, bench: Workbench, folder: Path) -> None:
    """An adapter added to its base, in the base's dtype, as one model.

    Args:
        bench: of ``plain_bench``.
    """
    model = load_policy(bench, finished.run, train=False, packs=False)
    merge(model).save_pretrained(folder)
    copy_result(finished.folder / ADAPTER_FOLDER, folder, leave_out=("adapter_",))


def merge(model: Any) -> Any:
    """The model without its adapter, which is added to the weights; ``model`` is used up.

    Where LoRA acts on the embedding or the head of a tied model, the two are two matrices from then
    on (``tie_word_embeddings = false``).
    """
    untie_adapted(model)
    return model.merge_and_unload()


def make_portable(folder: Path, base: str | None, revision: str | None) -> None:
    """Take this machine out of the configuration files.

    Args:
        base: what an adapter's base is called from now on.
    """
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found: dict[str, Any] = read_json(folder / name)
            kept = {key: value for key, value in found.items() if key not in _OF_THIS_MACHINE}
            write_json(folder / name, kept)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        named = {"base_model_name_or_path": base, "revision": revision}
        write_json(adapter, read_json(adapter) | named)


def require_portable(folder: Path, paths: tuple[Path, ...]) -> None:
    """Refuse a folder that names places of this machine.

    Raises:
        ArtefactError: a file does; the message says which.
    """
    words = [str(path) for path in paths if len(path.parts) > 1]
    for file in sorted(folder.rglob("*")):
        if file.suffix in _SCANNED and file.name not in _DATA:
            text = file.read_text(encoding="utf-8", errors="replace")
            if any(word in text for word in words):
                raise ArtefactError(
                    f"{file.name}: names a folder of this machine; nothing was exported"
                )


def write_ranking(bench: Workbench, folder: Path) -> None:
    """``catalogue.jsonl``, ``recommender.json`` and ``rank.py``: all that ranking needs."""
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in _items(bench))
    with (folder / CATALOGUE_FILE).open("w", encoding="utf-8", errors="replace") as stream:
        stream.writelines(lines)
    write_json(folder / SETTINGS_FILE, _settings(bench))
    script = files("llmrec_cli.exported").joinpath(RANK_FILE).read_bytes()
    (folder / RANK_FILE).write_bytes(script)


def _items(bench: Workbench) -> list[dict[str, Any]]:
    """The catalogue, the most popular first: of equal entries, the one that is recommended."""
    template = prompt_template(bench.recipe.prompt_for_eval.template)
    items = bench.prepared.items
    by_tokens = has_tokens(items)  # then prompts show the tokens, too
    found = []
    for item in items[COUNT].sort_values(ascending=False, kind="stable").index:
        title = items[TITLE].iloc[item]
        named = title if isinstance(title, str) else None
        entry = {
            "item_id": items[ITEM_ID].iloc[item],
            "title": named,
            "count": int(items[COUNT].iloc[item]),
            "tokens": bench.catalogue[item].tolist(),
        }
        if template is not None and not by_tokens:
            entry["text"] = template.render_item(title)
        found.append(entry)
    return found


def _settings(bench: Workbench) -> Mapping[str, Any]:
    prompt = bench.recipe.prompt_for_eval
    decode = bench.recipe.eval.decode
    template = prompt_template(prompt.template)
    wording: dict[str, Any] = {"start": bench.codec.start}
    if template is not None:
        wording = {
            "head": template.head,
            "tail": template.tail,
            "separator": template.separator,
            "empty": template.no_history,
        }
    limits = {"max_tokens": bench.encoder.max_tokens, "history": bench.recipe.data.history}
    return {
        "prompt": wording | limits,
        "decode": {
            "mask": decode.mask,
            "temperature": decode.temperature,
            "length_penalty": decode.length_penalty,
        },
        "dtype": "float32" if bench.recipe.model.tuning == "full" else bench.recipe.model.dtype,
    }
