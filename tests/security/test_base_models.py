"""Hostile model folders as ``model.backbone``: a canary never runs (RELIABILITY S1)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers.modeling_utils
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.models import loading
from llmrec_cli.pipeline.prepare import prepare_data
from tests.experiments import RECIPE, copied, typed
from tests.security.hostile import MODULE, change_json, code, pickled, write_base, zipped

pytestmark = pytest.mark.slow

Plant = Callable[[Path, Path], object]  # a base folder, and the file that must not appear
SFT = ("sft", "own.toml", "model.backbone=./base", "train.max_steps=1")
TOKENIZE = ("tokenize", "own.toml", "tokens.kind=semantic-id", "tokens.encoder=./base")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with prepared data and a harmless base."""
    home = tmp_path_factory.mktemp("made")
    write_base(home / "base")
    (home / "own.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        prepare_data(read_recipe("own.toml", ["model.backbone=./base"]), Path)
    return home


def write(name: str, content: Callable[[Path], bytes | str]) -> Plant:
    def plant(base: Path, canary: Path) -> None:
        found = content(canary)
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(found.encode() if isinstance(found, str) else found)

    return plant


def change(name: str, **changes: object) -> Plant:
    return lambda base, canary: change_json(base / name, changes)


def both(*plants: Plant) -> Plant:
    def plant(base: Path, canary: Path) -> None:
        for one in plants:
            one(base, canary)

    return plant


def without_weights(base: Path, canary: Path) -> None:
    (base / WEIGHTS).unlink()


def index(shard: str) -> Plant:
    def plant(base: Path, canary: Path) -> None:
        outside = base.parent / "outside.safetensors"
        shutil.copy(base / WEIGHTS, outside)
        (base / WEIGHTS).unlink()
        name = shard.format(outside=outside)
        with safe_open(outside, "pt") as file:
            weights = dict.fromkeys(file.keys(), name)
        (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))

    return plant


def link(base: Path, canary: Path) -> None:
    shutil.move(base / WEIGHTS, base.parent / "outside.safetensors")
    (base / WEIGHTS).symlink_to(base.parent / "outside.safetensors")


def link_to_text(base: Path, canary: Path) -> None:
    (base.parent / "secret").write_text("hello")
    (base / "chat_template.jinja").symlink_to(base.parent / "secret")


EVIL = write("modeling_evil.py", code)
AUTO = {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
OWN_TOKENIZER = {"AutoTokenizer": ["modeling_evil.Evil", "modeling_evil.Evil"]}
KERNEL = f"{MODULE}/kernel"
JINJA = "{{{{ cycler.__init__.__globals__.os.system('touch {}') }}}}"
CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
PICKLES = ("training_args.bin", "optimizer.pt", "scheduler.pt", "random_states_0.pkl", "scaler.pt")
CASES: dict[str, tuple[Plant, str]] = {  # what is planted, and what refuses it; "" is ignored
    "weights as a pickle alone": (
        both(without_weights, write("pytorch_model.bin", zipped)),
        "no file named model.safetensors",
    ),
    "weights as a pickle beside": (write("pytorch_model.bin", zipped), ""),
    "other pickles of a trainer": (both(*(write(name, pickled) for name in PICKLES)), ""),
    "a pickle called safetensors": (write(WEIGHTS, zipped), "SafetensorError"),
    "a pickle called config": (write(CONFIG, pickled), "not a valid JSON"),
    "a pickle called tokenizer": (write("tokenizer.json", pickled), "can't decode"),
    "a pickle called tokenizer_config": (write(TOKENIZER, pickled), "can't decode"),
    "a pickle called generation_config": (write("generation_config.json", pickled), ""),
    "other frameworks' pickles": (
        both(without_weights, write("tf_model.h5", pickled), write("flax_model.msgpack", pickled)),
        "no file named model.safetensors",
    ),
    "a distributed checkpoint": (
        both(
            without_weights,
            write(".metadata", pickled),
            write("shard-00000-model-00001-of-00001.safetensors", zipped),
        ),
        "distributed checkpoint",
    ),
    "auto_map of a known type": (both(EVIL, change(CONFIG, auto_map=AUTO)), ""),
    "auto_map of an unknown type": (
        both(EVIL, change(CONFIG, auto_map=AUTO, model_type="evil")),
        "contains custom code",
    ),
    "auto_map of a tokenizer": (
        both(EVIL, change(TOKENIZER, tokenizer_class="Evil", auto_map=OWN_TOKENIZER)),
        "contains custom code",
    ),
    "a dotted tokenizer class": (change(TOKENIZER, tokenizer_class=f"{MODULE}.Evil"), ""),
    "a dotted architecture": (change(CONFIG, architectures=[f"{MODULE}.Evil"]), ""),
    "a path as a model type": (change(CONFIG, model_type=f"../{MODULE}"), "does not recognize"),
    "an expression as activation": (change(CONFIG, hidden_act="__import__"), "KeyError"),
    "a kernel as attention": (change(CONFIG, attn_implementation=KERNEL), ""),
    "a kernel as attention, by part": (change(CONFIG, attn_implementation={"": KERNEL}), ""),
    "a kernel as private attention": (change(CONFIG, _attn_implementation=KERNEL), ""),
    "a kernel as internal attention": (change(CONFIG, _attn_implementation_internal=KERNEL), ""),
    "a kernel for experts": (change(CONFIG, experts_implementation=KERNEL), ""),
    "kernels for layers": (
        change(CONFIG, use_kernels=True, allow_all_kernels=True, kernel_config={"RMSNorm": KERNEL}),
        "",
    ),
    "patches of classes": (change(CONFIG, fusion_config={MODULE: True}), ""),
    "an unknown quantizer": (
        change(CONFIG, quantization_config={"quant_method": MODULE}),
        "quantized",
    ),
    "a quantizer of another package": (
        change(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantized (gptq)",
    ),
    "weights under another name": (
        both(
            without_weights,
            write("adapter_model.bin", zipped),
            change(CONFIG, transformers_weights="adapter_model.bin"),
        ),
        "no file named model.safetensors",
    ),
    "an index that climbs": (index("../outside.safetensors"), "'../outside.safetensors'"),
    "an index to another place": (index("{outside}"), "outside.safetensors'; expected"),
    "an index to a pickle": (
        both(index("pytorch_model.bin"), write("pytorch_model.bin", zipped)),
        "'pytorch_model.bin'; expected",
    ),
    "weights behind a link": (link, "a link that leads out"),
    "a text behind a link": (link_to_text, "a link that leads out"),
    "an adapter in the base": (
        both(
            write("adapter_model.bin", zipped),
            change("adapter_config.json", peft_type="LORA", base_model_name_or_path="../other"),
        ),
        "holds an adapter",
    ),
    "a generate function": (
        both(
            write("custom_generate/generate.py", code),
            change("generation_config.json", custom_generate="custom_generate"),
        ),
        "",
    ),
    "a chat template": (write("chat_template.jinja", lambda canary: JINJA.format(canary)), ""),
    "a chat template in settings": (
        lambda base, canary: change_json(base / TOKENIZER, {"chat_template": JINJA.format(canary)}),
        "",
    ),
}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that must not appear; a module and the hub's kernels would make it."""
    found = tmp_path / "canary"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{MODULE}.py").write_text(code(found))
    monkeypatch.syspath_prepend(tmp_path / "path")

    def kernel(*words: object, **named: object) -> None:
        found.touch()

    monkeypatch.setattr(transformers.modeling_utils, "lazy_import_flash_attention", kernel)
    return found


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied(made, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("words", "result"),
    [(SFT, "sft/model"), pytest.param(TOKENIZE, "tokens", marks=pytest.mark.slow)],
    ids=["base", "encoder"],
)
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_model_is_refused_or_its_tricks_are_ignored(
    name: str,
    words: tuple[str, ...],
    result: str,
    home: Path,
    canary: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a base, and as the sentence encoder of semantic IDs, which is named in its messages."""
    plant, refused = CASES[name]
    plant(home / "base", canary)
    done = typed(capsys, *words)
    assert not canary.exists()
    assert done.code == (2 if refused else 0), done.err
    if refused:
        (line,) = done.errors
        assert refused in line
        assert "model.backbone" not in line or words is SFT
        assert not list(home.glob(f"runs/*/{result}"))


@pytest.mark.parametrize("name", ["a kernel as private attention", "a kernel as attention"])
def test_validate_looks_at_a_config_without_following_it(
    name: str, home: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CASES[name][0](home / "base", canary)
    done = typed(capsys, "validate", "own.toml", "--rows", "model.backbone=./base")
    assert (done.code, canary.exists()) == (0, False), done.err


def unguarded(config: Any, source: object, key: str) -> Any:
    return config


WITHOUT: dict[str, tuple[object, str, Callable[..., object]]] = {  # a case, and its guard off
    "weights under another name": (loading, "harmless", unguarded),
    "an unknown quantizer": (loading, "harmless", unguarded),
    "an index that climbs": (loading, "_check_index", lambda index: None),
    "an index to a pickle": (loading, "_check_index", lambda index: None),
    "weights behind a link": (loading, "_check_files", lambda folder: None),
    "a text behind a link": (loading, "_check_files", lambda folder: None),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_its_guard_a_trick_works(
    name: str,
    home: Path,
    canary: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The controls: the pickle is read, the outside weights are taken."""
    plant, refused = CASES[name]
    room, guarding, off = WITHOUT[name]
    monkeypatch.setattr(room, guarding, off)
    plant(home / "base", canary)
    done = typed(capsys, *SFT)
    if "a pickle" in name or "another name" in name:
        assert "UnpicklingError" in done.err  # torch read it, and its own list stopped it
    else:
        assert done.code == 0, f"refused all the same: {refused}"


def test_a_config_given_to_the_library_as_it_is_fetches_a_kernel(home: Path, canary: Path) -> None:
    """The control of the kernels: attention that was asked for does not stand above config.json."""
    CASES["a kernel as private attention"][0](home / "base", canary)
    AutoModelForCausalLM.from_pretrained(
        "./base", attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True
    )
    assert canary.exists()
