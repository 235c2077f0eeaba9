"""Targets: lists that other tools have made, and the storage of a sweep."""

from __future__ import annotations

import atexit
import contextlib
import io
import tempfile
import warnings
from functools import cache
from pathlib import Path
from random import Random
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_cli.evaluation.comparison import ComparisonConfig, EvaluatedData
from llmrec_cli.evaluation.entries import PreparedFolders
from llmrec_cli.evaluation.external_lists import Missing, load_external_entry
from llmrec_cli.evaluation.predictions import read_predictions
from llmrec_cli.sweep.plan import SweepPlan, make_plan
from llmrec_cli.sweep.study import DATABASE, open_study
from tests.robustness.fuzz.experiment import below, experiment, files_of
from tests.robustness.fuzz.mutate import Files
from tests.robustness.fuzz.runs import PREPARED, RUN
from tests.robustness.fuzz.tables import TABLES, parquet
from tests.robustness.fuzz.target import Target, lay_out

USERS: Final = [f"A{user}UVWXYZUSER{user}" for user in range(5)]
LISTED: Final = [
    (user, f"B00000000{item}", rank + 1, 1 - rank / 4)
    for user in USERS
    for rank, item in enumerate((3, 1, 0))
]
_NAMES: Final = ("user_id", "item_id", "rank", "score")
_ASKED: Final = ComparisonConfig("test", ("keep", "remove"), "keep", (1, 5), "ndcg@5", None, 100, 0)


@cache
def _ground() -> EvaluatedData:
    """The prepared data that the lists are for, opened once."""
    kept = tempfile.TemporaryDirectory(prefix="fuzz-")
    atexit.register(kept.cleanup)
    lay_out(below(experiment(), PREPARED), Path(kept.name))
    return PreparedFolders("test").load_data(Path(kept.name) / PREPARED)


def _external(folder: Path, rng: Random) -> None:
    (path,) = folder.iterdir()
    missing: Missing = rng.choice(("refuse", "miss"))
    load_external_entry("other", path, _ground(), _ASKED, missing, None)


def _texts() -> list[Files]:
    rows = [_NAMES, *LISTED]
    numbered = [("row", "item_id", "score")] + [
        (USERS.index(user), item, score) for user, item, _, score in LISTED
    ]
    recbole = [(f"{name}:token" for name in _NAMES), *LISTED]
    texts = [
        "".join(delimiter.join(map(str, row)) + "\n" for row in table)
        for table, delimiter in ((rows, ","), (numbered, ","), (list(recbole), "\t"))
    ]
    trec = "".join(f"{u} Q0 {item} {rank} {score} tag\n" for u, item, rank, score in LISTED)
    return [*({"lists.csv": text.encode()} for text in texts), {"lists.trec": trec.encode()}]


def _tables() -> list[Files]:
    columns = [pa.array(column) for column in zip(*LISTED, strict=True)]
    theirs = pa.Table.from_arrays(columns, names=_NAMES)
    ours = pq.read_table(io.BytesIO(experiment()[f"{RUN}/predictions.parquet"]))
    return [
        {"lists.parquet": parquet(table, change, only=only)}
        for change in TABLES
        for table in (ours, theirs)
        for only in range(table.num_columns)
    ]


def _predictions(folder: Path, rng: Random) -> None:
    read_predictions(folder / "lists.parquet")


def _plan(folder: Path) -> SweepPlan:
    (folder / "own.toml").write_bytes(experiment()["own.toml"])
    lay_out(below(experiment(), "reviews", "meta"), folder)
    return make_plan("own.toml", [], {}, ["sft.train.learning_rate=1e-3,1e-4"], "study")


def _swept(plan: SweepPlan, storage: str | None) -> None:
    with open_study(plan, storage) as points:
        trial = points.ask_trial()
        if trial is not None:
            points.read_point(trial)
            points.complete_trial(trial, [0.5], 1.0)
        points.list_tried()


@cache
def _studied() -> Files:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, contextlib.chdir(name):
        _swept(_plan(Path(name)), None)
        return {n: d for n, d in files_of(Path(name)).items() if n.endswith(DATABASE)}


def _study(folder: Path, rng: Random) -> None:
    _swept(_plan(folder), None)


def _storage(folder: Path, rng: Random) -> None:
    """No word that leads out of the folder, or to another machine."""
    word = (folder / "storage.txt").read_bytes().decode(errors="replace").replace("\0", "")
    path = word.partition("://")[2]
    if "//" not in path and ".." not in path and not word.startswith(("/", ".")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a driver, about words that it does not know
            _swept(_plan(folder), word)


STORAGES: Final = (
    *(b"sqlite:///study.db", b"sqlite://", b"sqlite:///:memory:", b"study.db", b"sqlite:study"),
    *(b"postgresql://user:secret@localhost:1/base", b"mysql+nothing://h/b", b"redis://localhost:1"),
    *(b"sqlite:///a?mode=ro&uri=true", b"journal:study.log"),
)
TARGETS: Final = [
    Target("external-text", _texts, _external),
    Target("external-parquet", _tables, _external),
    Target("predictions", _tables, _predictions),
    Target("sweep-study", lambda: [_studied()], _study, machine=True),
    Target(
        "sweep-storage",
        lambda: [{"storage.txt": word} for word in STORAGES],
        _storage,
        machine=True,
    ),
]
