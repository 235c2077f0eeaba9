"""Targets: what lies in experiments, read by the commands that come after training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.model import ModelSection
from llmrec_cli.evaluation.external_lists import export_data
from llmrec_cli.models import loading
from llmrec_cli.models.loading import check_adapter
from llmrec_cli.pipeline.audit import audit_folder
from llmrec_cli.pipeline.audit import to_json as audit_json
from llmrec_cli.pipeline.compare import Asked, compare_runs
from llmrec_cli.pipeline.train import sft
from llmrec_cli.pipeline.validate import validate
from llmrec_cli.report.outputs import write_output
from llmrec_cli.runs import listing
from llmrec_cli.serving.card import Wanted
from llmrec_cli.serving.export import export
from llmrec_cli.serving.recommender import Recommender
from llmrec_cli.sources.download import RECORD, download_category
from llmrec_cli.training.checkpoint import Checkpoints, restore
from llmrec_cli.training.dataset import Sampler
from llmrec_cli.training.item_scores import load_vectors
from llmrec_cli.training.negatives import Miner
from llmrec_cli.training.reference import ReferenceStore
from llmrec_cli.training.rows import Row
from llmrec_cli.utils.files import HASHES_FILE
from llmrec_cli.utils.progress import Silent
from tests.robustness.fuzz.experiment import EXPERIMENT, below, checkpoints, experiment, files_of
from tests.robustness.fuzz.mutate import Files
from tests.robustness.fuzz.target import Target

RUN: Final = f"{EXPERIMENT}/sft"
ITEMKNN: Final = f"{EXPERIMENT}/baseline-itemknn"
PREPARED: Final = f"{EXPERIMENT}/prepared"
_UNREADABLE: Final = (
    *(ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError),
)
_TOLD: Final = ("manifest.json", "metrics.jsonl", "report.json", "recipe.toml")


def vouch(root: Path) -> None:
    """Make recorded hashes fit the files, as whoever forges a folder would."""
    for file in root.rglob(HASHES_FILE):
        others = [p for p in sorted(file.parent.rglob("*")) if p.is_file() and p != file]
        found = {p.relative_to(file.parent).as_posix(): _sha256(p.read_bytes()) for p in others}
        text = json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False)
        file.write_text(text + "\n")
    if (root / PREPARED).is_dir():
        _vouch_prepared(root / PREPARED)


def _vouch_prepared(folder: Path) -> None:
    manifest = folder / "manifest.json"
    before = _sha256(experiment()[f"{PREPARED}/manifest.json"]).encode()
    with contextlib.suppress(
        ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError
    ):
        told = json.loads(manifest.read_bytes())
        for name, facts in told["files"].items():
            facts["sha256"] = _sha256((folder / name).read_bytes())
        manifest.write_text(json.dumps(told))
    now = _sha256(manifest.read_bytes()).encode()
    for run in folder.parent.glob("*/*.json"):
        run.write_bytes(run.read_bytes().replace(before, now))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _some(*starts: str, leave: Sequence[str] = ()) -> Callable[[], list[Files]]:
    """Files of the experiment whose names begin so."""
    return lambda: [
        {n: d for n, d in below(experiment(), *starts).items() if not n.endswith(tuple(leave))}
    ]


def _told(folder: Path, rng: Random) -> None:
    for found in listing.find_states(folder / "runs"):
        listing.state_to_cells(found)
        json.dumps(listing.state_to_json(found), allow_nan=False)
    json.dumps(listing.describe_run(folder / rng.choice((RUN, ITEMKNN))), allow_nan=False)


def _compared(folder: Path, rng: Random) -> None:
    if rng.random() < 0.5:
        vouch(folder)
    ending = rng.choice(("json", "html", "md", "csv"))
    compared = compare_runs([EXPERIMENT], Asked(seen=rng.choice((None, "remove"))))
    write_output(folder / f"out.{ending}", compared)


def _recommended(folder: Path, rng: Random) -> None:
    vouch(folder)
    opened = Recommender.load(rng.choice((RUN, ITEMKNN)))
    opened.recommend(["Title 1, the"], k=3)
    opened.recommend(opened.history_of("A1UVWXYZUSER1"), k=3)


def _exported(folder: Path, rng: Random) -> None:
    vouch(folder)
    export(RUN, folder / "out", Wanted(), progress=Silent())


def _prepared(folder: Path, rng: Random) -> None:
    vouch(folder)
    recipe = read_recipe("own.toml")
    act = rng.randrange(3)
    if act == 0:
        json.dumps(audit_json(audit_folder(recipe.prepared_folder)), allow_nan=False)
    elif act == 1:
        list(validate(recipe, rows=rng.random() < 0.3))
    else:
        export_data(recipe, folder / "out")


def _resumed(folder: Path, rng: Random) -> None:
    """The last steps of a run that was interrupted after its last checkpoint."""
    shutil.rmtree(folder / RUN / "model", ignore_errors=True)
    manifest = folder / RUN / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"done"', b'"running"'))
    vouch(folder)
    sft(read_recipe("own.toml"), resume=True, progress=Silent())


def _checkpoint(folder: Path, rng: Random) -> None:
    if rng.random() < 0.7:
        vouch(folder)
    found = Checkpoints(folder, writes=False).newest()
    if found is not None:
        model = nn.Linear(3, 2)
        restore(found.folder, model, torch.optim.AdamW(model.parameters()))


def _base(folder: Path, rng: Random) -> None:
    loading.read_tokenizer(folder)
    loading.load_config(folder)
    loading.load_model(folder, ModelSection(backbone=str(folder), tuning="full"))


ADAPTER: Final[dict[str, Any]] = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "base",
    "bias": "none",
    "task_type": "CAUSAL_LM",
    "auto_mapping": None,
}


def _rows(count: int) -> list[Row]:

    one = Row(
        np.arange(9, dtype=np.int32), (1,), number=0, negatives=((2, 3),), reference=np.ones(3)
    )
    return [one] * count


def _mined(folder: Path, rng: Random) -> None:
    vouch(folder)
    rows = _rows(1)
    miner = Miner(
        lambda asked: [[[5, 6, 7]] for _ in asked],
        rows,
        Sampler(1, 1, shuffle=False),
        steps=1,
        refresh=2,
        folder=folder / "negatives",
    )
    miner.find_lists(rows, 0)


def _stored(folder: Path, rng: Random) -> None:
    vouch(folder)
    store = ReferenceStore(folder / "reference-0-of-1", {"base": "x"})
    if store.load():
        store.fill([row for row in _rows(2)], 0)


def _vectors(folder: Path, rng: Random) -> None:
    vouch(folder)
    load_vectors(folder / "scores/vectors", {"model": "x"}, lambda: torch.ones(2, 3))


@cache
def _caches() -> Files:
    """What a training keeps beside its run: mined lists, a reference's values, item vectors."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        _mined(folder, Random(0))
        ReferenceStore(folder / "reference-0-of-1", {"base": "x"}).save([_rows(2)])
        _vectors(folder, Random(0))
        return files_of(folder)


def _downloaded(folder: Path, rng: Random) -> None:
    """All files are there, so that nobody is asked: only the record of them is read."""
    download_category("amazon2018/Gift_Cards", folder, ["ratings"], None, Silent())


TARGETS: Final = [
    Target("runs-list", _some("runs/own/", leave=(".safetensors", ".html")), _told),
    Target(
        "runs-told",
        lambda: [{n: d for n, d in experiment().items() if n.endswith(_TOLD) and "/" in n}],
        _told,
    ),
    Target("compare", _some("runs/own/", leave=(".safetensors", ".html", ".lock")), _compared),
    Target("recommend", _some("runs/own/", leave=(".html", ".lock")), _recommended),
    Target("export", _some("runs/own/", leave=(".html", ".lock")), _exported),
    Target(
        "prepared",
        _some(PREPARED, "own.toml", "meta", "reviews", f"{EXPERIMENT}/base/"),
        _prepared,
        fixed=("own.toml", "meta.jsonl", "reviews.jsonl"),
    ),
    Target(
        "resume",
        _some(PREPARED, RUN, "own.toml", "meta", "reviews", f"{EXPERIMENT}/base/"),
        _resumed,
        fixed=("own.toml", "meta.jsonl", "reviews.jsonl"),
    ),
    Target("checkpoints", lambda: [checkpoints()], _checkpoint),
    Target(
        "base-model",
        lambda: [
            {n.rpartition("/")[2]: d for n, d in below(experiment(), f"{EXPERIMENT}/base/").items()}
        ],
        _base,
    ),
    Target(
        "adapter",
        lambda: [
            {
                "adapter_config.json": json.dumps(ADAPTER).encode(),
                "adapter_model.safetensors": b"",
            }
        ],
        lambda folder, rng: check_adapter(folder),
    ),
    Target("mined-lists", lambda: [below(_caches(), "negatives")], _mined),
    Target("reference", lambda: [below(_caches(), "reference")], _stored),
    Target("item-vectors", lambda: [below(_caches(), "scores")], _vectors),
    Target(
        "download-record",
        lambda: [
            {
                "Gift_Cards.csv": b"1234",
                RECORD: json.dumps(
                    {
                        "Gift_Cards.csv": {
                            "generation": "amazon2018",
                            "url": "https://example.org/Gift_Cards.csv",
                            "bytes": 4,
                            "sha256": _sha256(b"1234"),
                        }
                    }
                ).encode(),
            }
        ],
        _downloaded,
        fixed=("Gift_Cards.csv",),
    ),
]
