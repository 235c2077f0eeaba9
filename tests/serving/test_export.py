"""Exported folders: ordinary Hugging Face ones, which rank as the run does, without llmrec."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import stat
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmrec_cli import Recommender
from llmrec_cli.cli.serving import export_command
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import ArtefactError, MachineError, RecipeError, UserError
from llmrec_cli.models.tokenizer import train_tokenizer
from llmrec_cli.pipeline.baseline import baseline
from llmrec_cli.pipeline.evaluate import evaluate_runs
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.train import sft
from llmrec_cli.serving import export as export_module
from llmrec_cli.serving import export as hub
from llmrec_cli.serving.card import Wanted, fence_code
from llmrec_cli.serving.export import Exported, export
from llmrec_cli.utils.progress import Silent
from llmrec_cli.utils.text import escape_markdown
from tests.models.test_chat import CHATS

pytestmark = [  # slow, and what peft has to say
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
LOGIN = "hf_secret"
SAMPLE = Path(__file__).parents[2] / "data/sample/amazon2018"
TITLES = f"""
[data]
format = "amazon2018"
reviews = "{SAMPLE}/Synthetic_Toys.json.gz"
metadata = "{SAMPLE}/meta_Synthetic_Toys.json.gz"
history = 5
sample = {{ train = 200, valid = 10, test = 30 }}
"""
IDS = """
[data]
format = "semantic-ids"
reviews = "./inter.json"
index = "./index.json"
k_core = 0
history = 5
"""
SHARED = """
[model.lora]
r = 4
targets = "all-linear"
[train]
max_steps = 8
batch = 16
validate_rows = 10
learning_rate = 2e-2
[eval]
resamples = 100
decode = { temperature = 1.5 }
"""
KINDS = {  # name -> the run's own tables, and what wraps its weights
    "full": TITLES
    + '[model]\nbackbone = "scratch"\n[model.scratch]\nhidden = 16\nlayers = 1\nheads = 2\n'
    + "feed_forward = 16\nvocabulary = 400\n",
    "lora": TITLES + '[prompt]\ntemplate = "items"\n[model]\nbackbone = "./acme-base"\n'
    'tuning = "lora"\n',
    "ids": IDS + '[model]\nbackbone = "./acme-base"\ntuning = "lora"\n',
    "chat": TITLES + '[prompt]\ntemplate = "items"\nchat = true\n[model]\nbackbone = '
    '"./acme-base"\ntuning = "lora"\n',
    "ids-chat": IDS + '[prompt]\ntemplate = "items"\nchat = true\n[model]\nbackbone = '
    '"./acme-base"\ntuning = "lora"\n',
    "ids-text": IDS + '[prompt]\ntemplate = "items"\n[model]\nbackbone = "./acme-base"\n'
    'tuning = "lora"\n',
}
_IDS_LONGER = ("train.max_steps=40", "train.learning_rate=1e-1", "train.validate_every=99")
LONGER = {"ids": _IDS_LONGER, "ids-text": _IDS_LONGER, "ids-chat": _IDS_LONGER}
WAYS = [
    ("full", False),
    ("lora", False),
    ("lora", True),
    ("ids", False),
    ("ids", True),
    ("ids-text", False),
]


def write_base(folder: Path) -> None:
    """A tiny pretrained model in the hub's layout, whose generation_config samples."""
    tokenizer = train_tokenizer(["The user has bought these items before"], vocabulary=400)
    tokenizer.add_tokens(CHATS["ChatML"][1], special_tokens=True)
    tokenizer.chat_template = CHATS["ChatML"][0]
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **size)
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = True
    model.generation_config.top_k = 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small finished run of each kind."""
    folder = tmp_path_factory.mktemp("work")
    write_base(folder / "acme-base")
    index = {str(i): [f"<a_{i % 5}>", f"<b_{i // 6}>"] for i in range(30)}
    users = {str(u): [(u * 7 + t * 3) % 30 for t in range(8)] for u in range(40)}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "inter.json").write_text(json.dumps(users))
    for name, text in KINDS.items():
        (folder / f"{name}.toml").write_text(text + SHARED)
        words = [f"out={folder / 'runs'}", *LONGER.get(name, ())]
        recipe = read_recipe(str(folder / f"{name}.toml"), words)
        prepare_data(recipe, Path)
        sft(recipe, resume=False, progress=Silent())
        if name == "full":
            baseline(recipe, "pop", resume=False, progress=Silent())
            evaluate_runs(recipe, ["sft"], split="test", again=False, progress=Silent())
    return folder


def exported(home: Path, to: Path, kind: str, **wanted: Any) -> Exported:
    return export(home / f"runs/{kind}/sft", to, Wanted(**wanted), progress=Silent())


def slow_scores(model: Any, prompt: list[int], items: list[list[int]], tau: float) -> list[float]:
    """Log-probability of every item, each token among those that continue some item."""
    legal: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for tokens in items:
        for place, token in enumerate(tokens):
            legal[tuple(tokens[:place])].add(token)
    width = max(map(len, items))
    with torch.no_grad():
        rows = torch.tensor([prompt + tokens + [0] * (width - len(tokens)) for tokens in items])
        logits = model(rows).logits[:, len(prompt) - 1 :].double() / tau
    scores = [0.0] * len(items)
    for row, tokens in enumerate(items):
        for place, token in enumerate(tokens):
            among = sorted(legal[tuple(tokens[:place])])
            scores[row] += float(logits[row, place, among].log_softmax(0)[among.index(token)])
    return scores


def plain_model(folder: Path, base: Path) -> Any:
    """The exported model as transformers and peft load it."""
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder)))
    return PeftModel.from_pretrained(model, folder).eval()


def plain_prompt(kind: str, tokenizer: Any, history: list[dict[str, Any]]) -> list[int]:
    """The prompt of a history, written out here."""
    if kind not in ("lora", "ids-text"):
        return [tokenizer.bos_token_id, *(token for item in history for token in item["tokens"])]
    names = [f'"{item["title"]}"' for item in history]
    if kind == "ids-text":
        names = ["".join(tokenizer.convert_ids_to_tokens(i["tokens"][:-1])) for i in history]
        assert all(name.startswith("<a_") for name in names)
    titles = ", ".join(names)
    ids: list[int] = tokenizer(
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Given a list of items the user has bought before, please recommend a new item that the "
        "user likes to the user.\n\n### Input:\nThe user has bought the following items before: "
        f"{titles}\n\n### Response:\n"
    )["input_ids"]
    return ids


@pytest.mark.parametrize(("kind", "merge"), WAYS)
def test_plain_transformers_and_peft_give_the_same_list(
    home: Path, tmp_path: Path, kind: str, merge: bool
) -> None:
    """Every item scored by teacher forcing, without the package's decoder or prompts."""
    exported(home, tmp_path / "out", kind, merge=merge)
    lines = (tmp_path / "out/catalogue.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    model = plain_model(tmp_path / "out", home / "acme-base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    history = [items[3], items[0]]
    prompt = plain_prompt(kind, tokenizer, history)
    scores = slow_scores(model, prompt, [item["tokens"] for item in items], tau=1.5)
    by_id = {item["item_id"]: score for item, score in zip(items, scores, strict=True)}

    opened = Recommender.load(home / f"runs/{kind}/sft")
    found = opened.recommend([item["item_id"] for item in history], 10, exclude_history=False)
    best = sorted({round(score, 9) for score in scores}, reverse=True)[:10]
    assert [item.score for item in found] == pytest.approx(best, abs=2e-5)
    for item in found:
        assert item.probability == pytest.approx(math.exp(by_id[item.item_id]), rel=1e-4)
    assert max(scores) - min(scores) > 0.1, "it learnt something: the list is not one of ties"


@contextmanager
def inside(folder: Path, base: Path) -> Iterator[None]:
    """In an exported folder, its base beside its files, and its modules importable."""
    before, known = Path.cwd(), set(sys.modules)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    (folder / base.name).symlink_to(base)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            if name == "rank":
                del sys.modules[name]


@pytest.mark.parametrize(("kind", "merge"), WAYS)
def test_the_code_of_the_card_runs_and_ranks_as_the_run_does(
    home: Path, tmp_path: Path, kind: str, merge: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(home, tmp_path / "out", kind, merge=merge)
    card = (tmp_path / "out/README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)\n```", card, flags=re.DOTALL)
    assert len(blocks) == 2
    with inside(tmp_path / "out", home / "acme-base"):
        space: dict[str, Any] = {}
        exec("\n".join(blocks), space)  # noqa: S102 - what a reader of the card does
    shown = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    opened = Recommender.load(home / f"runs/{kind}/sft")
    found = opened.recommend(space["history"], 10)
    assert [item_id for _, item_id, _ in shown] == [item.item_id for item in found]
    assert [chance for chance, *_ in shown] == [f"{item.probability:.4f}" for item in found]
    assert [title for *_, title in shown] == [str(item.title) for item in found]


@pytest.mark.parametrize("kind", ["lora", "ids", "ids-text"])
def test_rank_py_is_a_command_of_its_own(
    home: Path,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = exported(home, tmp_path / "out", kind)
    items = pd.read_parquet(home / f"runs/{kind}/prepared/items.parquet")
    second = items["item_id"][9]
    first = items["title"][3] if kind == "lora" else items["item_id"][3]
    with inside(made.folder, home / "acme-base"):
        script = importlib.import_module("rank")
        base = str(home / "acme-base")
        monkeypatch.setattr("sys.argv", ["rank.py", first, second, "-k", "3", "--base", base])
        script.main()
        shown = capsys.readouterr().out.splitlines()
        monkeypatch.setattr("sys.argv", ["rank.py", "no such item"])
        with pytest.raises(SystemExit):
            script.main()
        assert "no item has the id or the title 'no such item'" in capsys.readouterr().err
        monkeypatch.setattr("sys.argv", ["rank.py", first, second, "-k", "999", "--base", base])
        script.main()
        long = capsys.readouterr()
    entries = len(script.Catalogue.read(made.folder).trie) and len(long.out.splitlines()) + 2
    assert f"{entries - 2} of 999 entries: the catalogue has {entries}, and 2 of" in long.err
    found = Recommender.load(home / f"runs/{kind}/sft").recommend([items["item_id"][3], second], 3)
    assert shown == [f"{i.probability:.4f}  {i.item_id!r}  {i.title!r}" for i in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [None, 4])
def test_rank_py_makes_the_prompts_of_the_run(
    home: Path, tmp_path: Path, kind: str, room: int | None
) -> None:
    """Token by token; a small model may give nearly the same list to another prompt."""
    made = exported(home, tmp_path / "out", kind)
    context = Recommender.load(home / f"runs/{kind}/sft").context
    with inside(made.folder, home / "acme-base"):
        catalogue = importlib.import_module("rank").Catalogue.read(".")
        tokenizer = AutoTokenizer.from_pretrained(".")
    encoder, histories = context.encoder, [[], [3], [9, 3, 5, 9]]
    if room is not None:
        encoder.max_tokens = len(encoder.encode([histories[-1]])[0]) - room
        catalogue.prompt["max_tokens"] = encoder.max_tokens
    for history, prompt in zip(histories, encoder.encode(histories), strict=True):
        names = context.prepared.items["item_id"].iloc[history]
        told = [catalogue.find(name) for name in names]
        assert catalogue.prompt_ids(tokenizer, told) == prompt.tolist()


@pytest.mark.parametrize("override", ["mask=before", "mask=after", "length_penalty=0.5"])
def test_rank_py_knows_every_decoding_rule(home: Path, tmp_path: Path, override: str) -> None:
    """One prefix at a time: its search must not end with the first items that it meets."""
    words = [f"eval.decode.{override}", "eval.decode.search=all", "eval.decode.temperature=1"]
    run = home / "runs/full/sft"
    export(run, tmp_path / "out", Wanted(), overrides=words, progress=Silent())
    with inside(tmp_path / "out", home / "acme-base"):
        script: Any = importlib.import_module("rank")
        script.AT_ONCE = 1
        catalogue = script.Catalogue.read(".")
        history = [item["item_id"] for item in catalogue.items[5:9]]
        ranked = script.rank(*script.load("."), catalogue, history, k=8)
    found = Recommender.load(run, overrides=words).recommend(history, 8)
    assert [item["item_id"] for _, item in ranked] == [item.item_id for item in found]
    for (chance, _), item in zip(ranked, found, strict=True):
        assert chance == pytest.approx(item.probability, rel=1e-3)


@pytest.mark.parametrize(("kind", "merge"), WAYS)
def test_no_file_names_a_place_of_this_machine(
    home: Path, tmp_path: Path, kind: str, merge: bool
) -> None:
    made = exported(home, tmp_path / "out", kind, merge=merge)
    for name in made.files:
        content = (made.folder / name).read_bytes()
        for place in (home, tmp_path, Path(__file__).parents[2]):
            assert str(place).encode() not in content, name
    assert stat.S_IMODE((made.folder / "README.md").stat().st_mode) & 0o044, "others may read it"
    assert "files.json" not in made.files


def test_a_file_that_would_name_one_is_never_exported(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "make_portable", lambda *_: None)
    with pytest.raises(ArtefactError, match=r"adapter_config\.json: names a folder of this mach"):
        exported(home, tmp_path / "out", "lora")
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_an_export(home: Path, tmp_path: Path) -> None:
    made = exported(home, tmp_path / "new/out", "full")
    extra = ["README.md", "catalogue.jsonl", "rank.py", "recommender.json"]
    hub_own = ["config.json", "generation_config.json", "model.safetensors"]
    assert set(made.files) == {*extra, *hub_own, "tokenizer.json", "tokenizer_config.json"}
    weights = "model.safetensors"
    theirs = (home / "runs/full/sft/model" / weights).read_bytes()
    assert (made.folder / weights).read_bytes() == theirs
    lora = exported(home, tmp_path / "lora", "lora", base_model="acme/base")
    config = json.loads((lora.folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("acme/base", None)
    assert "generation_config.json" not in lora.files


def test_a_merged_model_has_the_dtype_of_its_base(home: Path, tmp_path: Path) -> None:
    run, words = home / "runs/lora/sft", ["model.dtype=bfloat16"]
    export(run, tmp_path / "out", Wanted(merge=True), overrides=words, progress=Silent())
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_the_card_tells_data_protocol_and_figures(home: Path, tmp_path: Path) -> None:
    exported(home, tmp_path / "out", "full", licence="mit", datasets=("acme/toys",))
    _, metadata, text = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(metadata)
    assert (found["license"], found["library_name"]) == ("mit", "transformers")
    assert found["datasets"] == ["acme/toys"]
    assert {"recommendation", "llmrec", "sft"} <= set(found["tags"])
    assert "base_model" not in found, "made from nothing"
    report = json.loads((home / "runs/full/sft/report.json").read_text())
    [result] = found["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    for policy in ("keep", "remove"):
        for name, figures in report[policy]["metrics"].items():
            mean, low, high = (figures[key] for key in ("mean", "low", "high"))
            assert f"{mean:.4f} \\[{low:.4f}, {high:.4f}\\]" in text
            if policy == "keep":
                assert values[name] == pytest.approx(mean, abs=1e-6)
    manifest = json.loads((home / "runs/full/prepared/manifest.json").read_text())
    for source in manifest["sources"]:
        assert source["sha256"] in text
    assert "| test | 30 | 30 |" in text
    assert "it was opened once for this run" in text
    assert "temperature = 1.5" in text


def test_the_card_of_an_adapter_names_its_base(home: Path, tmp_path: Path) -> None:
    exported(home, tmp_path / "a", "lora")
    _, metadata, text = (tmp_path / "a/README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(metadata)
    assert (found["license"], found["library_name"]) == ("unknown", "peft")
    assert "base_model" not in found, "a local folder is nothing that the hub could find"
    assert "The base was a local folder, acme-base" in text
    assert "Not evaluated on the test split." in text
    assert "To be filled in before" in text
    exported(home, tmp_path / "b", "lora", base_model="acme/base", merge=True)
    found = yaml.safe_load((tmp_path / "b/README.md").read_text().split("---\n", 2)[1])
    assert (found["base_model"], found["base_model_relation"]) == ("acme/base", "finetune")


def test_hostile_text_in_a_card_stays_text() -> None:
    assert escape_markdown("a|b\n# <img src=x> [x](y) `z`\x1b[2J") == (
        r"a\|b \# \<img src=x\> \[x\](y) \`z\`"
    )
    assert fence_code("```\nend") == "````text\n```\nend\n````"


def test_an_export_never_overwrites(home: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="is not empty, and nothing is overwritten"):
        exported(home, tmp_path / "full", "full")
    with pytest.raises(ArtefactError, match="is a file"):
        exported(home, tmp_path / "full/mine.txt", "full")
    (tmp_path / "empty").mkdir()
    assert exported(home, tmp_path / "empty", "full").files
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_an_export_appears_whole_or_not_at_all(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(card: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "render_card", full_disk)
    with pytest.raises(MachineError, match="cannot be written: No space left"):
        exported(home, tmp_path / "out", "full")
    assert list(tmp_path.iterdir()) == []


def test_what_came_meanwhile_is_not_lost(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(card: object) -> str:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine.txt").write_text("mine")
        return "card"

    monkeypatch.setattr(export_module, "render_card", slowly)
    with pytest.raises(ArtefactError, match="another process wrote there meanwhile"):
        exported(home, tmp_path / "out", "full")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("full", {"merge": True}, "--merge: the run has no adapter"),
        ("full", {"licence": "MIT License"}, "--license MIT License: expected the hub's name"),
        ("lora", {"base_model": "../x"}, r"--base-model \.\./x: expected a name on the hub"),
        ("full", {"datasets": ("a b",)}, "--dataset a b: expected a name on the hub"),
    ],
)
def test_options_that_do_not_fit(
    home: Path, tmp_path: Path, kind: str, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        exported(home, tmp_path / "out", kind, **wanted)
    assert list(tmp_path.iterdir()) == []


def test_a_conventional_model_has_no_hugging_face_format(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="a conventional model has no Hugging Face format"):
        export(home / "runs/full/baseline-pop", tmp_path / "o", Wanted(), progress=Silent())


def test_a_rank_pair_run_is_exported_with_its_question(tmp_path: Path) -> None:
    text = KINDS["full"] + '[prompt]\ntask = "rank-pair"\ntemplate = "games"\n' + SHARED
    (tmp_path / "pairs.toml").write_text(text.replace("[train]", '[train]\nselect = "auc"'))
    recipe = read_recipe(str(tmp_path / "pairs.toml"), [f"out={tmp_path / 'runs'}"])
    prepare_data(recipe, Path)
    run = sft(recipe, resume=False, progress=Silent())
    evaluate_runs(recipe, ["sft"], split="test", again=False, progress=Silent())
    made = export(run, tmp_path / "out", Wanted(), progress=Silent())
    assert not {"catalogue.jsonl", "rank.py", "recommender.json"} & set(made.files)
    card = (tmp_path / "out/README.md").read_text()
    assert "which of two items a user likes more" in card
    assert "| AUC\\_PAIRED |" in card
    [block] = re.findall(r"```python\n(.*?)\n```", card, flags=re.DOTALL)
    with inside(tmp_path / "out", tmp_path):
        exec(block, {})  # noqa: S102 - what a reader of the card does
    with pytest.raises(ArtefactError, match='its task is "rank-pair"'):
        Recommender.load(run)


def test_a_run_that_is_evaluated_elsewhere_recommends_there(home: Path, tmp_path: Path) -> None:
    """``[eval.data]``: the catalogue is the one that eval ranks; the card tells of both."""
    other = SAMPLE.parent / "amazon2014"
    words = [
        f"out={home / 'runs'}",
        "name=elsewhere",
        'eval.data.format="amazon2014"',
        f"eval.data.reviews={other}/reviews_Synthetic_Toys.json.gz",
        f"eval.data.metadata={other}/meta_Synthetic_Toys.json.gz",
        "eval.data.sample.test=10",
    ]
    recipe = read_recipe(str(home / "full.toml"), words)
    prepare_data(recipe, Path)
    run = sft(recipe, resume=False, progress=Silent())
    items = pd.read_parquet(run.parent / "prepared-eval/items.parquet")
    found = Recommender.load(run).recommend([items["item_id"][0]], 10_000, exclude_history=False)
    assert {item.item_id for item in found} <= set(items["item_id"])
    export(run, tmp_path / "out", Wanted(), progress=Silent())
    card = (tmp_path / "out/README.md").read_text()
    assert "Synthetic\\_Toys.json.gz (trained on) |" in card
    assert "reviews\\_Synthetic\\_Toys.json.gz (evaluated on) |" in card
    assert "| test (evaluated on) | 10 |" in card


def test_the_command_pushes_on_request_only(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pushed: list[tuple[str, bool]] = []

    def push(folder: Path, hub_id: str, *, public: bool) -> str:
        pushed.append((hub_id, public))
        return f"address/{hub_id}"

    monkeypatch.setattr(hub, "push", push)
    run = home / "runs/full/sft"
    export_command(run, tmp_path / "a", as_json=True, quiet=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["pushed"], pushed) == (None, [])
    assert found["files"]["README.md"] == (tmp_path / "a/README.md").stat().st_size

    monkeypatch.setenv("HF_TOKEN", LOGIN)
    export_command(run, tmp_path / "b", push_to="acme/toys", quiet=True)
    shown = capsys.readouterr().out
    assert pushed == [("acme/toys", False)]
    assert shown.splitlines()[-1] == "pushed: address/acme/toys"
    assert LOGIN not in shown


def test_what_cannot_be_pushed_is_said_before_any_work(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, to = home / "runs/full/sft", tmp_path / "out"
    with pytest.raises(RecipeError, match="--push-to a/b/c: expected a name on the hub"):
        export_command(run, to, push_to="a/b/c")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(MachineError, match="not logged in to the hub; run: hf auth login"):
        export_command(run, to, push_to="acme/toys")
    assert not to.exists()
