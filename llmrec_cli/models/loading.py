"""Loading of backbones: check the configuration, read tokenizer and weights, add adapters."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from llmrec_cli.config.model import ModelSection, ScratchModel
from llmrec_cli.data.formats.parsing import printable
from llmrec_cli.errors import ArtefactError, MachineError, RecipeError
from llmrec_cli.models.language_model import find_body
from llmrec_cli.models.tokenizer import add_item_tokens, train_tokenizer
from llmrec_cli.utils.imports import import_quickly

# Allowed contents of a model folder or hub repository: weights and settings, no code.
#
# The files of a model can make transformers and PEFT load Python files, kernels of the hub, weights
# from elsewhere, and pickles. This code refuses such settings, or removes them from the
# configuration.


INDEX: Final = "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Keys of config.json that make transformers import a file, fetch a kernel, patch a class, or read
# weights under another name.
_TRIGGERS: Final = (
    "auto_map",
    "custom_generate",
    "fusion_config",
    "kernel_config",
    "transformers_weights",
    "use_kernels",
)
_QUANTIZED: Final = "bitsandbytes"  # the only method that needs no code beyond llmrec[quantized]
_SHARD: Final = re.compile(r"[\w.-]+\.safetensors")
_DISTRIBUTED: Final = re.compile(r"shard-\d{5}-model-.*|.*\.distcp|\.metadata")
_OWN_CHOICE: Final = {  # keys of a plain LoRA's configuration that differ from run to run
    "base_model_name_or_path",  # not followed: the base is the recipe's
    "fan_in_fan_out",  # weights that lie the other way round, as in GPT-2
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "peft_version",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "trainable_token_indices",
}


@contextmanager
def loading(named: str) -> Iterator[None]:
    """Around a library's loading of a model: what it makes of bad files is one line.

    Args:
        named: what is loaded, for that line.

    Raises:
        ArtefactError: whatever the library raised, but for a lack of memory or of a package.
        MachineError: an optional package is missing.
    """
    try:
        yield
    except (ArtefactError, MachineError, MemoryError):
        raise
    except ImportError as error:
        raise MachineError(f"{named}: {first_line(error)}") from error
    except Exception as error:
        if "memory" in str(error).lower():  # torch's own ways to say so are told in exits.py
            raise
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        line = f"{kind}{first_line(error)}"
        raise ArtefactError(f"{named}: {line}") from error


def backbone(source: str | Path, key: str = "model.backbone") -> str:
    """What a model is called in messages, by the recipe's key that names it."""
    return f"{key} = {str(source)!r}"


def check_source(
    source: str | Path, revision: str | None = None, key: str = "model.backbone"
) -> None:
    """Refuse a model whose files lead elsewhere, or hold weights that are no safetensors.

    Args:
        source: a local folder, or a hub id whose small files are fetched for it.
        key: of the recipe that names it, for messages; below too.

    Raises:
        ArtefactError: names the file, and what was expected.
    """
    from transformers.utils import cached_file

    if Path(source).is_dir():
        _check_files(Path(source))

    def find(name: str) -> str | None:
        with loading(backbone(source, key)):
            found: str | None = cached_file(
                str(source), name, revision=revision, _raise_exceptions_for_missing_entries=False
            )
        return found

    if find(ADAPTER):
        raise ArtefactError(
            f"{backbone(source, key)}: holds an adapter ({ADAPTER}), which names a base "
            "of its own; expected a whole model (llmrec export --merge makes one)"
        )
    if index := find(INDEX):
        _check_index(Path(index))


def _check_files(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if _DISTRIBUTED.fullmatch(path.name):
            raise ArtefactError(
                f"{path}: part of a distributed checkpoint; expected model.safetensors"
            )
        if path.is_symlink() and not _inside(path.resolve(), folder.resolve()):
            raise ArtefactError(f"{path}: a link that leads out of the folder; copy the file there")


def _inside(target: Path, folder: Path) -> bool:
    """Whether a link stays in its folder, or in the hub's cache (``snapshots`` -> ``blobs``)."""
    cached = folder.parent.name == "snapshots"
    return target.is_relative_to(folder.parents[1] / "blobs" if cached else folder)


def _check_index(index: Path) -> None:
    """Weights are read where the index says: it may only name files beside it."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ArtefactError(f"{index}: no index of weights; expected a weight_map") from None
    for name in sorted(map(str, names)):
        if not _SHARD.fullmatch(name):
            raise ArtefactError(
                f"{index}: names {name!r}; expected *.safetensors files beside it and nothing else"
            )


def harmless(config: Any, source: str | Path, key: str = "model.backbone") -> Any:
    """A configuration without what would run code, in itself and in its parts.

    Raises:
        ArtefactError: quantized by a method that brings code of its own.
    """
    method = _method(getattr(config, "quantization_config", None))
    if method is not None and not method.startswith(_QUANTIZED):
        raise ArtefactError(
            f"{backbone(source, key)}: quantized ({method}); expected plain weights, or "
            f"those of {_QUANTIZED}"
        )
    config._attn_implementation = None  # the recipe's own is set when the model is made
    config._experts_implementation = None
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for key in _TRIGGERS:
            if part is not None and hasattr(part, key):
                delattr(part, key)
    return config


def _method(quantization: Any) -> str | None:
    if quantization is None:
        return None
    known = quantization if isinstance(quantization, dict) else vars(quantization)
    return str(getattr(known.get("quant_method"), "value", known.get("quant_method")))


def check_adapter(folder: Path) -> None:
    """Refuse an adapter that is more than the plain LoRA that llmrec trains.

    Raises:
        ArtefactError: weights that are no safetensors, another kind of adapter, or a key that
            brings in modules or files.
    """
    from peft import LoraConfig

    file = folder / ADAPTER
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ArtefactError(f"{folder / ADAPTER_WEIGHTS}: missing; other formats are not read")
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise ArtefactError(f"{file}: cannot be read as JSON") from None
    kind = found.get("peft_type") if isinstance(found, dict) else None
    if kind != "LORA":
        raise ArtefactError(f'{file}: peft_type = {kind!r}: expected "LORA"')
    usual = json.loads(json.dumps(LoraConfig().to_dict(), default=list))
    for key, value in found.items():
        if value and key not in _OWN_CHOICE and value != usual.get(key):
            odd = printable(f"{key} = {value!r}")
            raise ArtefactError(f"{file}: {odd}: expected {usual.get(key)!r}")


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind; of a list behind a colon, the first entry too."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


# Backbones: any causal language model of the hub or a local folder, or a small Llama from scratch.
#
# A *base* is a model with its tokenizer, as a Hugging Face folder. Training uses a *policy* around
# the model (``language_model.py``).


transformers_logging.disable_progress_bar()  # it would tear ours
_TITLES_AT_ONCE: Final = 256  # titles whose rows are averaged together
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_scratch(
    section: ScratchModel, texts: Sequence[str], new_tokens: Sequence[str], seed: int
) -> tuple[Any, Any]:
    """A small Llama with random weights and a tokenizer trained on ``texts``.

    Returns:
        (model, tokenizer); the same arguments give the same weights on every machine.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(texts, vocabulary=section.vocabulary)
    add_item_tokens(tokenizer, new_tokens)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=section.hidden,
        intermediate_size=section.feed_forward,
        num_hidden_layers=section.layers,
        num_attention_heads=section.heads,
        tie_word_embeddings=section.tied,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model, tokenizer


def read_tokenizer(
    source: str | Path, revision: str | None = None, key: str = "model.backbone"
) -> Any:
    """The tokenizer of a hub id or local folder.

    Raises:
        ArtefactError: it cannot be found or read.
    """
    from transformers import AutoTokenizer

    if str(source).startswith((".", "/")) and not Path(source).is_dir():
        raise ArtefactError(f"{backbone(source, key)}: no such folder")
    check_source(source, revision, key)
    with loading(backbone(source, key)), import_quickly():
        return AutoTokenizer.from_pretrained(
            str(source), revision=revision, trust_remote_code=False
        )


def load_config(
    source: str | Path, revision: str | None = None, key: str = "model.backbone"
) -> Any:
    """The configuration of a hub id or local folder, without what would run code.

    Raises:
        ArtefactError: it cannot be found or read.
    """
    from transformers import AutoConfig

    with loading(backbone(source, key)):
        config = AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=False)
        return harmless(config, source, key)


def base_folder(
    source: str | Path, revision: str | None = None, key: str = "model.backbone"
) -> tuple[Path, str | None]:
    """Where a base's files lie, and the hub's commit that they are; None: a folder of one's own.

    Raises:
        ArtefactError: it cannot be found.
    """
    from transformers.utils import cached_file

    if Path(source).is_dir():
        return Path(source), None
    with loading(backbone(source, key)):
        snapshot = Path(cached_file(str(source), "config.json", revision=revision)).parent
    return snapshot, snapshot.name


def load_model(source: str | Path, section: ModelSection) -> Any:
    """The causal LM of a hub id or local folder, in the recipe's dtype and attention.

    Weights are read from safetensors only, from no other place, and remote code is never run.

    Raises:
        ArtefactError: it cannot be found, read, or is no causal LM.
        MachineError: an optional package is missing.
    """
    with import_quickly():
        import transformers.modeling_utils  # noqa: F401  # what every architecture imports
        from transformers import AutoModelForCausalLM

    check_source(source, section.revision)
    full_precision = section.tuning == "full"  # weights that are trained stay fp32 under autocast
    options: dict[str, Any] = {
        "config": load_config(source, section.revision),
        "dtype": torch.float32 if full_precision else DTYPES[section.dtype],
        "attn_implementation": section.attention,
        "revision": section.revision,
        "trust_remote_code": False,
        "use_safetensors": True,
    }
    plain = section.quantize == "none"
    if not plain:
        options["quantization_config"] = _quantization(section)
    with _making_model(source, section):
        model, found = AutoModelForCausalLM.from_pretrained(
            str(source), output_loading_info=True, ignore_mismatched_sizes=plain, **options
        )
    if plain:
        _check_loaded(source, found)
    return _make_trainable(model, section)


def draw_model(source: str | Path, section: ModelSection) -> Any:
    """The causal LM of ``load_model`` with random weights, as its architecture initialises them.

    They follow from torch's seed.  No weights are read.

    Raises:
        ArtefactError: there is no configuration of a causal LM, or it lacks the recipe's attention.
        MachineError: an optional package is missing.
    """
    with import_quickly():
        import transformers.modeling_utils  # noqa: F401  # what every architecture imports
        from transformers import AutoModelForCausalLM

    check_source(source, section.revision)
    config = load_config(source, section.revision)
    with _making_model(source, section):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32,  # all weights are trained; autocast has the recipe's dtype
            attn_implementation=section.attention,
            trust_remote_code=False,
        )
    return _make_trainable(model, section)


@contextmanager
def _making_model(source: str | Path, section: ModelSection) -> Iterator[None]:
    """Around transformers' making of a model: what it lacks is one line of ours."""
    with loading(backbone(source)), quiet():
        try:
            yield
        except ImportError as error:
            reason = first_line(error)
            raise MachineError(f"model.attention = {section.attention!r}: {reason}") from error


def _make_trainable(model: Any, section: ModelSection) -> Any:
    """The model with the recipe's way to keep activations."""
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own tables and warnings: what matters in them is refused."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _check_loaded(source: str | Path, found: Mapping[str, Any]) -> None:
    """Refuse weights that transformers would have drawn at random."""
    for name, stored, expected in sorted(found["mismatched_keys"]):
        raise ArtefactError(
            f"{backbone(source)}: {name} has shape {tuple(stored)}, by config.json it should have "
            f"{tuple(expected)}"
        )
    for name in sorted(found["missing_keys"]):
        raise ArtefactError(
            f"{backbone(source)}: its weights have no {name}, which config.json needs"
        )


def fit_vocabulary(model: Any, tokenizer: Any) -> range:
    """Give a pretrained model rows for tokens that its tokenizer learnt since (semantic IDs).

    New rows are drawn around the mean of the old ones (transformers' ``mean_resizing``), so
    closely that they are nearly the same; ``start_from_text`` gives them meaning.

    Returns:
        The token ids of the new rows.
    """
    before: int = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > before:
        with quiet():  # it tells how rows are drawn; the stage tells what they start from
            model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    return range(before, model.get_input_embeddings().num_embeddings)


@torch.no_grad()
def start_from_text(
    model: Any, titles: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]
) -> None:
    """Let rows of new tokens start from the titles of the items that have them.

    A row becomes the mean over the token's items of the mean row of a title's tokens.  Every item
    weighs the same, however long its title is.  A head of its own gets its rows from its own rows.
    Tokens that no item has keep their rows.  Nothing is drawn: items with equal titles may give
    equal rows, which training parts, because their gradients differ.

    Args:
        model: with rows for the new tokens (``fit_vocabulary``); changed in place.
        titles: token ids of each item's title; items without a title are left out or empty.
        tokens: the ids of the new tokens of each item, each one once.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    matrices = {id(part.weight): part.weight for part in (embedding, head) if part is not None}
    below = [(title, new) for title, new in zip(titles, tokens, strict=True) if title and new]
    if not below:
        return
    for weight_VD in matrices.values():  # one where they are tied
        if not weight_VD.is_meta:  # weights that the first process sends
            ids_T, rows_TD = _average_titles(weight_VD, below)
            weight_VD[ids_T.to(weight_VD.device)] = rows_TD.to(weight_VD)


def _average_titles(
    weight_VD: torch.Tensor, below: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens' ids, ascending, and their rows; in fp64 on the CPU, alike in all processes.

    Args:
        below: the token ids of an item's title, and the new tokens that the item has.
    """
    ids_T = torch.tensor(sorted({token for _, new in below for token in new}))
    slot_of = {token: slot for slot, token in enumerate(ids_T.tolist())}
    sum_TD = torch.zeros(len(ids_T), weight_VD.shape[1], dtype=torch.float64)
    for at in range(0, len(below), _TITLES_AT_ONCE):
        block = below[at : at + _TITLES_AT_ONCE]
        word_of_N = torch.tensor([word for title, _ in block for word in title])
        item_of_N = torch.tensor([i for i, (title, _) in enumerate(block) for _ in title])
        length_I = torch.tensor([len(title) for title, _ in block])
        rows_ND = weight_VD[word_of_N.to(weight_VD.device)].to("cpu", torch.float64)
        mean_ID = sum_TD.new_zeros(len(block), sum_TD.shape[1]).index_add_(0, item_of_N, rows_ND)
        mean_ID /= length_I[:, None]
        slot_of_M = torch.tensor([slot_of[token] for _, new in block for token in new])
        item_of_M = torch.tensor([i for i, (_, new) in enumerate(block) for _ in new])
        sum_TD.index_add_(0, slot_of_M, mean_ID[item_of_M])
    items_T = torch.bincount(
        torch.tensor([slot_of[token] for _, new in below for token in new]), minlength=len(ids_T)
    )
    return ids_T, sum_TD / items_T[:, None]


def add_lora(model: Any, section: ModelSection, new_token_ids: Sequence[int]) -> Any:
    """Wrap a model in a LoRA adapter; embeddings of new tokens are trained and saved with it.

    A tied model has one row for a token's embedding and its place in the head.

    Raises:
        RecipeError: the model has no module of the names in ``model.lora.targets``, or new tokens
            are to be trained beside LoRA on the matrices that hold their rows.
        ArtefactError: new tokens are to be trained in a head that has a bias.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers.pytorch_utils import Conv1D

    _check_targets(model, section.lora.targets)
    if section.quantize != "none":
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=section.gradient_checkpointing
        )
    lora = section.lora
    targets: str | list[str] = (
        "all-linear" if lora.targets == ("all-linear",) else list(lora.targets)
    )
    named = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    embedding, head = (
        named[module] for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    tied = bool(model.config.tie_word_embeddings)
    holders = (embedding,) if tied else (embedding, head)
    trained = {name: list(new_token_ids) for name in holders}
    if new_token_ids:
        _check_new_rows(model, section.lora.targets, trained)
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in named),
            trainable_token_indices=trained if new_token_ids else None,
        ),
    )


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    known = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor) and module.weight.ndim == 2
    }
    if targets != ("all-linear",) and not known & {name.rpartition(".")[2] for name in targets}:
        raise RecipeError(
            f"model.lora.targets = {', '.join(targets)}: the backbone has no such module; expected "
            f'"all-linear", or some of {", ".join(sorted(known))}'
        )


def _check_new_rows(model: Any, targets: Sequence[str], trained: Iterable[str]) -> None:
    """Refuse what PEFT cannot train rows of new tokens beside, or would leave out."""
    both = sorted({*trained} & {name.rpartition(".")[2] for name in targets})
    if both:
        raise RecipeError(
            f"model.lora.targets = {', '.join(targets)}: the rows of new tokens (semantic IDs) in "
            f"{' and '.join(both)} are trained themselves, which LoRA on the same matrix excludes; "
            f"leave {' and '.join(both)} out"
        )
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ArtefactError(
            f"model type {model.config.model_type!r}: its output head has a bias, which PEFT "
            'leaves out where rows of new tokens are trained; use model.tuning = "full", or titles'
        )


def untie_adapted(model: Any) -> None:
    """Give the head a matrix of its own where LoRA acts on it or on the embedding.

    A tied model has one matrix for both.  A delta that is merged into it would act in both places.
    """
    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = [layer for layer in (embedding, head) if hasattr(layer, "get_delta_weight")]
    if not adapted or not base.config.tie_word_embeddings:
        return
    weight_VD = head.weight.detach().clone()  # without LoRA's delta; trained rows are in it
    plain = getattr(head, "base_layer", head)
    if hasattr(plain, "token_adapter"):  # the embedding's trained rows, inside of LoRA's layer
        plain = head.base_layer = plain.token_adapter.get_base_layer()
    plain.weight = nn.Parameter(weight_VD, requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


def add_dropout(model: Any, rate: float) -> None:
    """Dropout on embeddings and block outputs of a Llama that has none, by hooks; training only."""
    if rate == 0:
        return

    def drop(module: nn.Module, args: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], rate, module.training), *output[1:])
        return nn.functional.dropout(output, rate, module.training)

    decoder = find_body(model)
    decoder.embed_tokens.register_forward_hook(drop)
    for layer in decoder.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


def remove_dropout(model: nn.Module) -> None:
    """Switch every dropout off, also while training.

    A policy that is measured against its own beginning must not differ from it by noise.  A rate is
    the ``p`` of a dropout module, or a number of a module that calls the function: ``dropout``,
    ``attention_dropout``, ``hidden_dropout``, ``layerdrop``, as the architectures name it.
    """
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _quantization(section: ModelSection) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MachineError(
            f'model.quantize = "{section.quantize}" needs bitsandbytes: '
            'pip install "llmrec[quantized]"'
        )
    from transformers import BitsAndBytesConfig

    if section.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[section.dtype],
    )
