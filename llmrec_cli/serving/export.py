"""``llmrec export``: write a finished run as a Hugging Face folder, and check it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llmrec_cli.config.model import TREE_ATTENTION
from llmrec_cli.data.schema import COUNT, ITEM_ID, TITLE
from llmrec_cli.errors import ArtefactError, ExportError, MachineError, RecipeError
from llmrec_cli.models.language_model import Policy
from llmrec_cli.models.loading import (
    ADAPTER,
    check_adapter,
    check_source,
    load_config,
    loading,
    untie_adapted,
)
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.setup import CatalogueContext, base_source
from llmrec_cli.serving.card import Wanted, base_name, gather_card, render_card
from llmrec_cli.serving.finished import FinishedRun, open_finished, open_finished_context
from llmrec_cli.tasks.base import load_operations
from llmrec_cli.utils.files import (
    ADAPTER_FOLDER,
    HASHES_FILE,
    MODEL_FOLDER,
    read_json,
    write_folder,
    write_json,
)
from llmrec_cli.utils.progress import Progress

# Contents of an export except its card: weights, tokenizer, catalogue, prompt, rank.py.


CATALOGUE_FILE: Final = "catalogue.jsonl"
SETTINGS_FILE: Final = "recommender.json"
RANK_FILE: Final = "rank.py"
_OF_THIS_MACHINE: Final = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
_SCANNED: Final = (".json", ".md", ".py", ".jinja", ".txt")
_DATA: Final = ("tokenizer.json", "vocab.json")  # texts of their own, which may look like paths


def copy_result(source: Path, folder: Path, *, leave_out: tuple[str, ...] = ()) -> None:
    """The files of a run's ``model/`` or ``adapter/``, byte for byte, without our own."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.startswith((HASHES_FILE, "README", *leave_out)):
            shutil.copyfile(file, folder / file.name)


def plain_context(context: CatalogueContext) -> CatalogueContext:
    """The same run on a base of plain weights, with an attention that every machine has."""
    model = context.recipe.model
    attention = model.attention if model.attention in TREE_ATTENTION else "sdpa"
    section = model.model_copy(update={"quantize": "none", "attention": attention})
    return replace(context, recipe=context.recipe.model_copy(update={"model": section}))


def write_merged(finished: FinishedRun, context: CatalogueContext, folder: Path) -> None:
    """An adapter added to its base, in the base's dtype, as one model.

    Args:
        context: of ``plain_context``.
    """
    model = load_policy(context, finished.run, train=False, packs=False)
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


def write_ranking(context: CatalogueContext, folder: Path) -> None:
    """``catalogue.jsonl``, ``recommender.json`` and ``rank.py``: all that ranking needs."""
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in _items(context))
    with (folder / CATALOGUE_FILE).open("w", encoding="utf-8", errors="replace") as stream:
        stream.writelines(lines)
    write_json(folder / SETTINGS_FILE, _settings(context))
    script = files("llmrec_cli.serving.exported").joinpath(RANK_FILE).read_bytes()
    (folder / RANK_FILE).write_bytes(script)


def _items(context: CatalogueContext) -> list[dict[str, Any]]:
    """The catalogue, the most popular first: of equal entries, the one that is recommended."""
    encoder = context.encoder
    items = context.prepared.items
    found = []
    for item in items[COUNT].sort_values(ascending=False, kind="stable").index:
        title = items[TITLE].iloc[item]
        named = title if isinstance(title, str) else None
        entry = {
            "item_id": items[ITEM_ID].iloc[item],
            "title": named,
            "count": int(items[COUNT].iloc[item]),
            "tokens": context.catalogue[item].tolist(),
        }
        if encoder.texts:
            entry["text"] = encoder.texts[item]
        elif encoder.words is not None and encoder.words.fields:
            entry["fields"] = encoder.words.fields[item].tolist()
        found.append(entry)
    return found


def _settings(context: CatalogueContext) -> Mapping[str, Any]:
    decode = context.recipe.eval.decode
    template = context.encoder.marked
    wording: dict[str, Any] = {"start": context.codec.start}
    if template is not None:
        wording = {
            "head": template.head,
            "tail": template.tail,
            "separator": template.separator,
            "empty": template.no_history,
            "whole": template.whole,
        }
        if template.interaction_fields:
            wording["unknown"] = list(template.interaction_fields)
    limits = {"max_tokens": context.encoder.max_tokens, "history": context.recipe.data.history}
    return {
        "prompt": wording | limits,
        "decode": {
            "mask": decode.mask,
            "temperature": decode.temperature,
            "length_penalty": decode.length_penalty,
        },
        "dtype": "float32" if context.recipe.model.tuning == "full" else context.recipe.model.dtype,
    }


# The check of an export: load it with plain transformers, and compare scores with the run's.


ROWS: Final = 4
CLOSE: Final = 1e-3  # nats; another order of the same additions in fp32 differs by about 1e-5
_SPLITS: Final = ("valid", "test", "train")

Tokens = list[tuple[list[int], list[int]]]  # prompt, answer


def check_export(
    finished: FinishedRun, context: CatalogueContext, folder: Path, *, merged: bool
) -> float:
    """Compare the log-probabilities of all tokens at every place of a few answers.

    All models compute in fp32, whatever dtype their weights are stored in.  A merge is compared
    twice, because 16 bits round it: merged in fp32 it has to be the run, and as transformers opens
    it, it has to be what was merged in the stored dtype.

    Args:
        context: of ``plain_context``.
        folder: the exported one, which is not yet in its place.

    Returns:
        The largest difference between the run and the folder, nats: of a merge, with its rounding.

    Raises:
        ExportError: a difference is larger than the order of additions explains.
    """
    rows = _rows(context)
    compare = _Compared(finished, context.codec.tokenizer)
    model = load_policy(context, finished.run, train=False, packs=False).float()
    own_PV = torch.cat([_policy_scores(Policy(model), *row) for row in rows])
    expected, expected_PV = "in the run", own_PV
    if merged:
        model = merge(model)
        expected_PV = _plain_scores(model, rows)
        _nudge(model)
        moved = float((_plain_scores(model, rows) - expected_PV).abs().max())
        compare(own_PV, expected_PV, ("in the run", "merged in fp32"), CLOSE + 4 * moved)
        expected = f"merged in {context.recipe.model.dtype}"
        if context.recipe.model.dtype != "float32":
            model = merge(load_policy(context, finished.run, train=False, packs=False)).float()
            expected_PV = _plain_scores(model, rows)
    del model  # one model in memory at a time
    found_PV = _plain_scores(_open_plainly(finished, folder), rows)
    compare(expected_PV, found_PV, (expected, "as transformers opens the export"), CLOSE)
    return float((own_PV - found_PV).abs().max())


@dataclass(frozen=True)
class _Compared:
    """Refuses scores that are not those of the run."""

    finished: FinishedRun
    tokenizer: Any

    def __call__(
        self, ours_PV: Tensor, theirs_PV: Tensor, named: tuple[str, str], allowed: float
    ) -> None:
        what = f"{self.finished.folder}: the export is another model than the run"
        if theirs_PV.shape != ours_PV.shape:
            sizes = f"{theirs_PV.shape[1]:,} tokens, {ours_PV.shape[1]:,} in the run"
            raise ExportError(f"{what}: {sizes}; nothing was written: please report it")
        difference_PV = (ours_PV - theirs_PV).abs().nan_to_num(torch.inf)
        if float(difference_PV.max()) <= allowed:
            return
        at, token = divmod(int(difference_PV.argmax()), ours_PV.shape[1])
        raise ExportError(
            f"{what}: log-probability of {self.tokenizer.convert_ids_to_tokens(token)!r} "
            f"{float(ours_PV[at, token]):.4f} {named[0]}, {float(theirs_PV[at, token]):.4f} "
            f"{named[1]} (rounding explains {allowed:.4f}); nothing was written: please report it"
        )


def _rows(context: CatalogueContext) -> Tokens:
    """Prompts and answers of the prepared data; where it has no rows, items without a history."""
    for name in _SPLITS:
        if name in context.prepared.splits and len(
            frame := context.prepared.split(name).head(ROWS)
        ):
            break
    else:
        return [([context.codec.start], item.tolist()) for item in context.catalogue[:ROWS]]
    encoded = load_operations(context.recipe.task).encode_answers(context, frame, name)
    return [(prompt.tolist(), answer.tolist()) for prompt, answer in encoded]


@torch.no_grad()
def _policy_scores(policy: Policy, prompt: list[int], answer: list[int]) -> Tensor:
    """From the body's hidden states and the head's weights, as in training and ranking."""
    ids_T = torch.tensor([*prompt, *answer[:-1]])
    hidden_PD = policy(ids_T[None], torch.arange(len(prompt) - 1, len(ids_T)))[0]
    head = policy.head()
    bias_V = None if head.bias_V is None else head.bias_V.float()
    logits_PV = torch.nn.functional.linear(hidden_PD.float(), head.weight_VD.float(), bias_V)
    return logits_PV.log_softmax(-1)


@torch.no_grad()
def _plain_scores(model: Any, rows: Tokens) -> Tensor:
    """From calls of the whole model."""
    found = []
    for prompt, answer in rows:
        logits_TV = model(input_ids=torch.tensor([[*prompt, *answer[:-1]]])).logits[0]
        found.append(logits_TV[len(prompt) - 1 :].float().log_softmax(-1))
    return torch.cat(found)


@torch.no_grad()
def _nudge(model: Any) -> None:
    """Move every weight by one unit in its last place, up or down: as far as rounding goes."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        up = torch.rand(weight.shape, generator=generator) < 0.5
        weight.copy_(torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf)))


def _open_plainly(finished: FinishedRun, folder: Path) -> Any:
    """The exported model as its card says to load it, then in fp32; an adapter on its base."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    if not (folder / ADAPTER).is_file():
        return _whole_model(folder, None, "auto")
    section = finished.recipe.model
    model = _whole_model(base_source(finished.recipe), section.revision, section.dtype)
    with loading(f"the export of {finished.folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            # Drawn, and not as the run drew them: all of them stand in the adapter.
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        check_adapter(folder)
        return PeftModel.from_pretrained(model, str(folder)).eval()


def _whole_model(source: str | Path, revision: str | None, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    check_source(source, revision)
    config = load_config(source, revision)
    with loading(f"the export, on {source}"):
        model = AutoModelForCausalLM.from_pretrained(
            str(source),
            config=config,
            dtype=dtype,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
        )
        return model.eval().float()


# Pushing an exported folder to the Hugging Face hub, through its own client and login.


def check_hub_id(option: str, hub_id: str) -> None:
    """Refuse what cannot be a repository of the hub.

    Raises:
        RecipeError: expected OWNER/NAME; the message names the option that gave it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # lazily

    try:
        validate_repo_id(hub_id)
    except HFValidationError:
        raise RecipeError(
            f"{option} {hub_id}: expected a name on the hub, OWNER/NAME, of letters, digits and -_."
        ) from None


def check_push(hub_id: str) -> None:
    """Refuse what cannot be pushed, before any work for it.

    Raises:
        RecipeError: no name of a repository.
        MachineError: nobody is logged in.
    """
    from huggingface_hub import get_token

    check_hub_id("--push-to", hub_id)
    if get_token() is None:
        raise MachineError(f"--push-to {hub_id}: not logged in to the hub; run: hf auth login")


def push(folder: Path, hub_id: str, *, public: bool, api: Any = None) -> str:
    """Create the repository where there is none, private unless ``public``, and upload a folder.

    Args:
        api: the hub's client; by default one with the hub's own address and login.

    Returns:
        The repository's address.

    Raises:
        RecipeError: the repository exists and everybody can read it, which was not asked for.
        MachineError: no login, no permission, no network; nothing of a login is in the message.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    try:
        url = api.create_repo(hub_id, private=not public, exist_ok=True)
        if not public and not api.repo_info(url.repo_id).private:
            raise RecipeError(
                f"--push-to {hub_id}: exists and is public; add --public to publish there. "
                f"Nothing was uploaded; the export is in {folder}"
            )
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message="Model exported by llmrec"
        )
    except RecipeError:
        raise
    except Exception as error:  # the client's own kinds change with its version
        reason = _without(_line(error), api)
        raise MachineError(
            f"--push-to {hub_id}: not pushed: {reason}; the export is in {folder}"
        ) from None
    return str(url)


def _line(error: BaseException) -> str:
    """What an error says, on one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line) or type(error).__name__


def _without(text: str, api: Any) -> str:
    """``text`` with no token in it, whatever a server or a proxy answered."""
    from huggingface_hub import get_token

    for token in (api.token, get_token()):
        if isinstance(token, str) and token:
            text = text.replace(token, "[token]")
    return text


# ``llmrec export``: a finished run as a Hugging Face folder, with catalogue and card.


CARD_FILE: Final = "README.md"
_LICENCE: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Exported:
    """A folder that was written."""

    folder: Path
    files: dict[str, int]  # bytes of each
    difference: float  # the largest, of log-probabilities of the run and the folder, nats


def export(
    run: str | Path,
    to: Path,
    wanted: Wanted,
    *,
    overrides: Iterable[str] = (),
    progress: Progress,
) -> Exported:
    """Write a run's model or adapter with tokenizer, catalogue, ``rank.py`` and model card.

    Args:
        to: a new folder, or an empty one; it appears whole or not at all.
        overrides: ``key=value`` over the run's recipe, such as ``eval.decode.temperature=2``.

    Raises:
        ArtefactError: no finished language model, or ``to`` holds something.
        RecipeError: an option that does not fit the run.
        ExportError: what was written does not give the run's scores; nothing is left of it.
        MachineError: the disk refuses.
    """
    _require_free(to)
    finished = open_finished(run, overrides)
    _check(finished, run, wanted)
    context = open_finished_context(finished, "cpu")
    progress.say(f"exporting {run}")
    found = 0.0

    def fill(folder: Path) -> None:
        nonlocal found
        _fill(finished, context, wanted, folder)
        progress.say("comparing it with the run, as transformers opens it")
        found = check_export(finished, plain_context(context), folder, merged=wanted.merge)
        progress.say(
            f"log-probabilities differ by at most {found:.1e} nats{_why(finished, wanted)}"
        )

    write_folder(to, fill, hashes=False, replaces=False)
    files = {file.name: file.stat().st_size for file in sorted(to.iterdir())}
    return Exported(to, files, found)


def _why(finished: FinishedRun, wanted: Wanted) -> str:
    """What makes an export differ from its run, besides the order of additions."""
    model = finished.recipe.model
    reasons = []
    if wanted.merge and model.dtype != "float32":
        reasons.append(
            f"merging rounds weights to {model.dtype} (model.dtype=float32 behind the command "
            "writes them unrounded)"
        )
    if model.quantize != "none":
        reasons.append(f"the run's base is quantized to {model.quantize}, here it is not")
    return f": {'; '.join(reasons)}" if reasons else ""


def _fill(finished: FinishedRun, context: CatalogueContext, wanted: Wanted, folder: Path) -> None:
    recipe = finished.recipe
    if recipe.model.tuning == "full":
        copy_result(finished.folder / MODEL_FOLDER, folder)
    elif wanted.merge:
        write_merged(finished, plain_context(context), folder)
    else:
        copy_result(finished.folder / ADAPTER_FOLDER, folder)
    make_portable(folder, base_name(recipe, wanted), recipe.model.revision)
    if recipe.task.ranks_catalogue:
        write_ranking(context, folder)
    card = render_card(gather_card(finished, context, wanted))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    require_portable(folder, (recipe.folder, Path(recipe.model.backbone), folder))


def _require_free(to: Path) -> None:
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        what = "is not empty" if to.is_dir() else "is a file"
        raise ArtefactError(f"--to {to}: {what}, and nothing is overwritten; expected a new folder")
    if to.exists() and to.samefile(Path.cwd()):
        raise ArtefactError(f"--to {to}: is the folder that you are in; expected a new folder")


def _check(finished: FinishedRun, run: str | Path, wanted: Wanted) -> None:
    if finished.conventional:
        raise ArtefactError(
            f"{run}: a conventional model has no Hugging Face format; its weights are in "
            f"{Path(run) / MODEL_FOLDER}, and llmrec recommend uses it where it is"
        )
    if finished.run.is_guided:
        raise ArtefactError(
            f"{run}: is {finished.run.parent} with a guide, and an export holds no guide; export "
            f"{finished.run.parent} alone, or use llmrec recommend where the run is"
        )
    if finished.run.is_untouched:
        raise ArtefactError(
            f"{run}: is {finished.recipe.model.backbone} as it is; nothing was trained, so there "
            "is nothing to export"
        )
    if wanted.merge and finished.recipe.model.tuning == "full":
        raise RecipeError('--merge: the run has no adapter (tuning = "full"); leave it out')
    if wanted.licence and not _LICENCE.fullmatch(wanted.licence):
        raise RecipeError(
            f"--license {wanted.licence}: expected the hub's name of one, such as apache-2.0 or mit"
        )
    if wanted.base_model:
        check_hub_id("--base-model", wanted.base_model)
    for name in wanted.datasets:
        check_hub_id("--dataset", name)
