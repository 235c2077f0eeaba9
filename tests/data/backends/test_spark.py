"""Spark for real, on two cores of this machine: the same bytes as the embedded engine.

All of Spark's tests are in this file, so that they share one session.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec_cli.config.data import DataSection, SparkSection
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.backends import Engine, open_engine
from llmrec_cli.data.backends.spark import on_spark
from llmrec_cli.errors import MachineError
from llmrec_cli.pipeline.prepare import prepare_data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("pyspark") is None, reason="no pyspark: make test EXTRAS=dev,spark"
    ),
    pytest.mark.skipif(shutil.which("java") is None, reason="no java on this machine"),
]

SAMPLE = Path(__file__).resolve().parents[3] / "data" / "sample"
QUICK = {
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "3",
    "spark.sql.files.maxPartitionBytes": "262144",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A session that every test here finds running; gone without a trace at the end."""
    log = tmp_path_factory.mktemp("spark") / "spark.log"
    interrupt = signal.getsignal(signal.SIGINT)
    with on_spark(SparkSection(master="local[2]", options=QUICK), log) as started:
        assert signal.getsignal(signal.SIGINT) is interrupt
        yield started
        from pyspark import SparkContext

        jvm = SparkContext._gateway.proc
        assert jvm.poll() is None
    assert jvm.poll() is not None
    assert SparkContext._active_spark_context is None
    assert not log.exists()


def sample(year: str) -> dict[str, object]:
    folder = SAMPLE / f"amazon{year}"
    (reviews,) = (file for file in folder.glob("*.gz") if not file.name.startswith("meta_"))
    metadata = folder / f"meta_{reviews.name.removeprefix('reviews_')}"
    return {"format": f"amazon{year}", "reviews": str(reviews), "metadata": str(metadata)}


# UTF-16 would order the last two the other way round, and a careless reader trim or fold the first.
USERS = ["U", "u", " u", "ù", "u\u0300", "001", "1", "\uffee", "😀"]


def ratings(folder: Path) -> dict[str, object]:
    """A file with ties in time, repeated pairs, equal moments across users, and hostile ids."""
    file = folder / "ratings.csv"
    lines = [
        f"{USERS[n * n % 9]}{n % 4},i{n * 7 % 13},{1 + n * 5 % 9 / 2},{1_500_000_000_000 + n // 4}"
        for n in range(900)
    ]
    file.write_text("\n".join(["user_id,parent_asin,rating,timestamp", *lines]) + "\n")
    return {"format": "ratings2023", "reviews": str(file), "untitled": "id", "k_core": 2}


def folders(folder: Path, data: dict[str, object], locate: Any = Path) -> list[dict[str, bytes]]:
    """The files that each engine makes, by name."""
    made = []
    for name in ("polars", "spark"):
        asked = {"name": name, "out": str(folder), "data": data | {"engine": name}}
        prepared = prepare_data(Recipe.model_validate(asked), locate)
        made.append({file.name: file.read_bytes() for file in prepared.folder.iterdir()})
    return made


CASES = {
    "leave-one-out": {},
    "last of repeats, by time": {"duplicates": "last", "split": "global-time", "history": 3},
    "drawn by time, with dislikes": {
        "split": "global-time",
        "min_history": 0,
        "min_rating": 3.0,
        "sample": {"train": 20, "test": 3},
    },
    "window, with dislikes": {"min_rating": 2.0, "start": "2017-07-14", "duplicates": "keep"},
    "few shots of a core with repeats": {
        "split": "few-shot",
        "few_shot_users": 4,
        "duplicates": "keep",
        "k_core": 9,
        "sample": {"test": 5},
    },
}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("case", CASES)
def test_ratings_give_the_same_bytes(tmp_path: Path, case: str) -> None:
    ours, theirs = folders(tmp_path, ratings(tmp_path) | CASES[case])
    assert len(ours) == 5
    assert ours == theirs


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("year", ["2018"])
def test_the_synthetic_sample_gives_the_same_bytes(tmp_path: Path, year: str) -> None:
    ours, theirs = folders(tmp_path, sample(year))
    assert ours == theirs


CARDS, MUSIC, BEAUTY = "amazon2018-gift-cards", "amazon2014-digital-music", "amazon2023-all-beauty"
GAMES = "dmpo-games/rec_Amazon_Game"
SHARED: dict[str, dict[str, object]] = {
    "gift cards": {
        "format": "amazon2018",
        "reviews": f"{CARDS}/Gift_Cards_5.json.gz",
        "metadata": f"{CARDS}/meta_Gift_Cards.json.gz",
        "min_rating": 4.0,
        "k_core": 3,
    },
    "digital music": {
        "format": "amazon2014",
        "reviews": f"{MUSIC}/reviews_Digital_Music_5.json.gz",
        "metadata": f"{MUSIC}/meta_Digital_Music.json.gz",
    },
    "all beauty": {
        "format": "amazon2023",
        "reviews": f"{BEAUTY}/All_Beauty.jsonl.gz",
        "metadata": f"{BEAUTY}/meta_All_Beauty.jsonl.gz",
    },
    "all beauty, ratings": {
        "format": "ratings2023",
        "reviews": f"{BEAUTY}/All_Beauty.rating_only.csv.gz",
        "untitled": "id",
        "split": "global-time",
    },
    "all beauty, published": {
        "format": "split2023",
        "split": "given",
        "splits": {n: f"{BEAUTY}/published.{n}.csv.gz" for n in ("train", "valid", "test")},
        "untitled": "id",
    },
    "instruments": {
        "format": "semantic-ids",
        "reviews": "sid-instruments/Instruments.inter.json.gz",
        "index": "sid-instruments/Instruments.index.json.gz",
    },
    "books": {
        "format": "msl-windows",
        "split": "given",
        "splits": {"train": "msl-books/train_10000.csv.gz", "test": "msl-books/test.csv.gz"},
        "metadata": "msl-books/id2name4Rec.json.gz",
    },
    "games": {
        "format": "rank-pairs",
        "split": "given",
        "splits": {
            "train": f"{GAMES}_sft_ranking.json.gz",
            "preference": f"{GAMES}_dpo_ranking_3.json.gz",
            "test": f"{GAMES}_eval_ranking.json.gz",
        },
    },
    "odd samples": {
        "format": "amazon2023",
        "reviews": "odd-samples/All_Beauty.verbatim_675users.2023.jsonl.gz",
        "untitled": "id",
        "k_core": 2,
        "duplicates": "last",
    },
}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("source", SHARED)
def test_genuine_data_give_the_same_bytes(shared_data: Path, tmp_path: Path, source: str) -> None:
    ours, theirs = folders(tmp_path, SHARED[source], lambda name: shared_data / name)
    assert ours == theirs


@pytest.mark.usefixtures("engine")
def test_a_folder_is_reused_whichever_engine_made_it(tmp_path: Path) -> None:
    tmp_path = tmp_path / "a [b]{c},*% é"  # no pattern, no URL
    tmp_path.mkdir()
    data = ratings(tmp_path)
    for engines in (("polars", "spark"), ("spark", "polars")):
        asked = [
            {"name": engines[0], "out": str(tmp_path), "data": data | {"engine": engine}}
            for engine in engines
        ]
        first, again = (prepare_data(Recipe.model_validate(recipe), Path) for recipe in asked)
        assert (first.reused, again.reused) == (False, True)


def test_a_failure_is_one_line_without_javas_stack(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no parquet PAR1")
    section = DataSection(format="ratings2023", reviews=("r",), engine="spark")
    for path, reason in (("no.parquet", "FAILED_READ_FILE"), ("gone.parquet", "PATH_NOT_FOUND")):
        with (
            pytest.raises(
                MachineError, match=rf'^data\.engine = "spark": Spark failed: .*{reason}'
            ) as failed,
            open_engine(section, tmp_path / "log") as active,
        ):
            active.written(active.scan(tmp_path / path), tmp_path / "out")
        assert "\n" not in str(failed.value)
        assert failed.value.exit_code == 3
    alive = tmp_path / "alive.parquet"  # the session that was there before lives on
    pl.DataFrame({"n": [1]}).write_parquet(alive)
    assert engine.scan(alive).collect_schema().names() == ["n"]


def test_a_spark_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        f"""
        [data]
        format = "ratings2023"
        reviews = "{ratings(tmp_path)["reviews"]}"
        untitled = "id"
        engine = "spark"
        [data.spark]
        master = "nonsense"
        """
    )
    command = [sys.executable, "-m", "llmrec_cli", "prepare", "recipe.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    *progress, last = done.stderr.splitlines()
    assert progress == ["checking the sources"]
    assert "SparkException: Master must either be yarn or start with spark, k8s, or local" in last
    log = tmp_path / "runs" / "recipe" / "prepared.spark.log"
    assert str(log.relative_to(tmp_path)) in last
    assert "SparkException" in log.read_text()
    assert list(log.parent.iterdir()) == [log]


def test_without_java_the_message_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pyspark.sql import SparkSession

    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    with (
        pytest.raises(MachineError, match="no Java: java is not there; install Java 17 or newer"),
        on_spark(SparkSection(), tmp_path / "log"),
    ):
        pass
    monkeypatch.setenv("JAVA_HOME", "gone")
    with (
        pytest.raises(MachineError, match=r"no Java: gone.bin.java is not there"),
        on_spark(SparkSection(), tmp_path / "log"),
    ):
        pass
