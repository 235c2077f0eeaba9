"""What a model folder or hub repository may hold: weights and settings, nothing that runs.

Transformers and PEFT follow what the files of a model say: Python files, kernels of the hub,
weights elsewhere, pickles.  Here it is refused, or taken out of the configuration, before they
see it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from llmrec_cli.data.readers.block import printable
from llmrec_cli.errors import ArtefactError, MachineError

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


def backbone(source: str | Path) -> str:
    """What a model is called in messages."""
    return f"model.backbone = {str(source)!r}"


def check_source(source: str | Path, revision: str | None = None) -> None:
    """Refuse a model whose files lead elsewhere, or hold weights that are no safetensors.

    Args:
        source: a local folder, or a hub id whose small files are fetched for it.

    Raises:
        ArtefactError: names the file, and what was expected.
    """
    from transformers.utils import cached_file

    if Path(source).is_dir():
        _check_files(Path(source))

    def find(name: str) -> str | None:
        with loading(backbone(source)):
            found: str | None = cached_file(
                str(source), name, revision=revision, _raise_exceptions_for_missing_entries=False
            )
        return found

    if find(ADAPTER):
        raise ArtefactError(
            f"{backbone(source)}: holds an adapter ({ADAPTER}), which names a base "
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


def harmless(config: Any, source: str | Path) -> Any:
    """A configuration without what would run code, in itself and in its parts.

    Raises:
        ArtefactError: quantized by a method that brings code of its own.
    """
    method = _method(getattr(config, "quantization_config", None))
    if method is not None and not method.startswith(_QUANTIZED):
        raise ArtefactError(
            f"{backbone(source)}: quantized ({method}); expected plain weights, or "
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
