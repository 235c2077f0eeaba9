"""``llmrec download``: official names, hosts that are gone, mirrors, and what is left behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from llmrec_cli.cli.app import app
from llmrec_cli.config.loader import find_shipped_folder, list_shipped_names, read_recipe
from llmrec_cli.errors import ArtefactError, MachineError, UserError
from llmrec_cli.sources import download
from llmrec_cli.sources.download import (
    download_category,
    find_category,
    format_recipe,
    load_generations,
    mirror_hosts,
)
from llmrec_cli.utils.progress import Silent
from tests.sources.web_server import Host, Served, hosting

REVIEWS, META = gzip.compress(b"reviews"), gzip.compress(b"meta")
NAME = "amazon2018/Gift_Cards"


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """A copy laid out as the first official host; the working folder is empty."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with hosting() as host:
        host.files["/categoryFilesSmall/Gift_Cards_5.json.gz"] = Served(REVIEWS)
        host.files["/metaFiles2/meta_Gift_Cards.json.gz"] = Served(META)
        yield host


def test_the_command_fetches_and_prints_a_recipe_that_loads(mirror: Host, tmp_path: Path) -> None:
    words = ["download", NAME, "--to", "raw", "--from", mirror.address]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    digest = hashlib.sha256(REVIEWS).hexdigest()
    assert f"raw/Gift_Cards_5.json.gz: {len(REVIEWS)} bytes, SHA-256 {digest}" in done.stdout
    assert "cite: J. Ni" in done.stdout
    (tmp_path / "r.toml").write_text(done.stdout[done.stdout.index("[data]") :])
    recipe = read_recipe("r.toml")
    assert recipe.data.format == "amazon2018"
    assert recipe.data.reviews == ("raw/Gift_Cards_5.json.gz",)
    assert recipe.data.metadata == ("raw/meta_Gift_Cards.json.gz",)
    record = json.loads((tmp_path / "raw/downloads.json").read_text())
    assert record["Gift_Cards_5.json.gz"]["sha256"] == digest
    assert record["Gift_Cards_5.json.gz"]["url"].endswith(
        "/categoryFilesSmall/Gift_Cards_5.json.gz"
    )


def test_json_says_the_same(mirror: Host) -> None:
    words = ["download", NAME, "--from", mirror.address, "--what", "meta", "--json", "-q"]
    told = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    [file] = told["files"]
    assert (file["kind"], file["path"], file["bytes"]) == (
        "meta",
        "raw/meta_Gift_Cards.json.gz",
        len(META),
    )
    assert told["recipe"] == ""


def test_what_is_there_is_not_asked_for_again(mirror: Host) -> None:
    for _ in range(2):
        done = download_category(NAME, Path("raw"), ["reviews"], mirror.address, Silent())
    assert len(mirror.asked) == 1
    assert done.files["reviews"][0].bytes == len(REVIEWS)


class Counting:
    """A progress that remembers where its bars began, ended, and would be full."""

    def __init__(self) -> None:
        self.bars: list[list[int]] = []

    def say(self, text: str) -> None:
        pass

    def say_once(self, subject: str, text: str) -> None:
        pass

    @contextmanager
    def track(self, label: str, total: int, done: int = 0, unit: str = "it") -> Iterator[Any]:
        bar = [done, done, total]
        self.bars.append(bar)

        def advance(n: int = 1, note: str = "") -> None:
            bar[1] += n

        yield advance


def test_bars_count_megabytes_and_end_full(mirror: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MB", 10)
    served = mirror.files["/categoryFilesSmall/Gift_Cards_5.json.gz"]
    served.cuts, tens = [25], -(-len(REVIEWS) // 10)
    progress = Counting()
    download_category(NAME, Path("raw"), ["reviews"], mirror.address, progress)
    assert progress.bars == [[0, 2, tens], [2, tens, tens]]


def test_an_interrupted_download_goes_on(mirror: Host) -> None:
    served = mirror.files["/categoryFilesSmall/Gift_Cards_5.json.gz"]
    served.cuts = [10] + [0] * download.ATTEMPTS
    with pytest.raises(MachineError, match="the same command goes on from there"):
        download_category(NAME, Path("raw"), ["reviews"], mirror.address, Silent())
    mirror.asked.clear()
    download_category(NAME, Path("raw"), ["reviews"], mirror.address, Silent())
    assert [asked for _, asked in mirror.asked] == ["bytes=10-"]
    assert Path("raw/Gift_Cards_5.json.gz").read_bytes() == REVIEWS


def test_a_flat_copy_serves_as_well(mirror: Host) -> None:
    mirror.files = {"/flat/meta_Gift_Cards.json.gz": Served(META)}
    base = f"{mirror.address}/flat/"
    download_category(NAME, Path("raw"), ["meta"], base, Silent())
    assert [path for path, _ in mirror.asked] == [
        "/flat/metaFiles2/meta_Gift_Cards.json.gz",
        "/flat/meta_Gift_Cards.json.gz",
    ]


def test_the_next_host_is_asked_where_one_is_gone(
    mirror: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation, category = find_category("amazon2023/All_Beauty")
    dead, alive = (download.Host(mirror.address + p, h.files) for p, h in
                   zip(("/dead", "/hub"), generation.hosts, strict=True))  # fmt: skip
    for split in ("train", "valid", "test"):
        path = f"/hub/benchmark/5core/last_out_w_his/{category}.{split}.csv"
        mirror.files[path] = Served(split.encode())
    monkeypatch.setattr(download, "mirror_hosts", lambda generation, base: (dead, alive))
    done = download_category("amazon2023/all-beauty", Path("raw"), ["splits"], "x", Silent())
    assert [one.path.name for one in done.files["splits"]] == [
        f"All_Beauty.{split}.csv" for split in ("train", "valid", "test")
    ]
    assert tomllib.loads(done.recipe)["data"] == {
        "format": "split2023",
        "split": "given",
        "untitled": "id",
        "splits": {split: f"raw/All_Beauty.{split}.csv" for split in ("train", "valid", "test")},
    }


def test_no_host_at_all_is_one_line_with_the_reasons(mirror: Host) -> None:
    mirror.files.clear()
    with pytest.raises(MachineError) as told:
        download_category(NAME, Path("raw"), ["meta"], mirror.address, Silent())
    assert str(told.value) == (
        "amazon2018/Gift_Cards: meta: no host has it (127.0.0.1: 404 Not Found; 127.0.0.1: 404 Not "
        "Found); see https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2, or name a copy with "
        "--from URL"
    )
    assert told.value.exit_code == 3


def test_a_known_checksum_is_held_against_what_arrives(mirror: Host) -> None:
    name = "Musical_Instruments_5.json.gz"
    mirror.files[f"/categoryFilesSmall/{name}"] = Served(REVIEWS)
    with pytest.raises(MachineError, match="expected e3ae8a3f"):
        download_category(
            "amazon2018/Musical_Instruments", Path("raw"), ["reviews"], mirror.address, Silent()
        )
    assert not Path("raw", name).exists()


def test_a_file_of_another_generation_is_never_taken_for_this_one(mirror: Host) -> None:
    """2014 and 2018 call their metadata alike."""
    mirror.files["/meta_Digital_Music.json.gz"] = Served(META)
    mirror.files["/metaFiles2/meta_Digital_Music.json.gz"] = Served(META)
    download_category("amazon2014/Digital_Music", Path("raw"), ["meta"], mirror.address, Silent())
    with pytest.raises(ArtefactError, match="not of amazon2018"):
        download_category(
            "amazon2018/Digital_Music", Path("raw"), ["meta"], mirror.address, Silent()
        )


def test_somebody_elses_file_is_left_alone(mirror: Host) -> None:
    Path("raw").mkdir()
    Path("raw/Gift_Cards_5.json.gz").write_bytes(b"mine")
    with pytest.raises(ArtefactError, match="remove it, or download to another folder"):
        download_category(NAME, Path("raw"), ["reviews"], mirror.address, Silent())
    assert Path("raw/Gift_Cards_5.json.gz").read_bytes() == b"mine"


def test_a_file_that_shrank_and_a_damaged_record_are_told(mirror: Host) -> None:
    download_category(NAME, Path("raw"), ["reviews"], mirror.address, Silent())
    Path("raw/Gift_Cards_5.json.gz").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"0 bytes, .* remove it to download it again"):
        download_category(NAME, Path("raw"), ["reviews"], mirror.address, Silent())
    Path("raw/downloads.json").write_text('{"Gift_Cards_5.json.gz": 1}')
    with pytest.raises(ArtefactError, match="damaged"):
        download_category(NAME, Path("raw"), ["reviews"], mirror.address, Silent())


def test_two_downloads_do_not_share_a_folder(mirror: Host) -> None:
    Path("raw").mkdir()
    with (
        FileLock("raw/.downloads.lock"),
        pytest.raises(ArtefactError, match="another download is at work"),
    ):
        download_category(NAME, Path("raw"), ["reviews"], mirror.address, Silent())


@pytest.mark.parametrize(
    ("name", "kinds", "base", "problem"),
    [
        ("amazon2019/Books", ["meta"], None, "Did you mean amazon2018?"),
        ("amazon2018/Giftcard", ["meta"], None, "Did you mean amazon2018/Gift_Cards?"),
        ("amazon2018", ["meta"], None, "llmrec download --list amazon2018"),
        ("amazon2018/../../etc", ["meta"], None, "unknown category"),
        (NAME, ["splits"], None, "amazon2018 has reviews, full, meta, ratings"),
        (NAME, ["meta"], "file:///etc", "expected an http or https URL"),
        (NAME, ["meta"], "http://[", "expected an http or https URL"),
        (NAME, ["meta"], "https://me:secret@host/x", "without password or query"),
        (NAME, ["meta"], "https://host/x?token=1", "without password or query"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(
    name: str,
    kinds: list[str],
    base: str | None,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as told:
        download_category(name, Path("raw"), kinds, base, Silent())
    assert problem in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_all_means_every_kind_but_the_whole_of_the_reviews(mirror: Host) -> None:
    mirror.files["/categoryFilesSmall/Gift_Cards.csv"] = Served(b"i,u,5.0,1\n")
    done = download_category(NAME, Path("raw"), ["all"], mirror.address, Silent())
    assert list(done.files) == ["reviews", "meta", "ratings"]


def test_a_folder_outside_is_named_in_full_in_the_recipe(mirror: Host, tmp_path: Path) -> None:
    """``../`` in a recipe is relative to the recipe's own file."""
    Path("here").mkdir()
    done = download_category(NAME, Path("here/../raw"), ["reviews"], mirror.address, Silent())
    [file] = done.files["reviews"]
    moved = download.Fetched(Path("../raw/x.gz"), file.url, 1, file.sha256)
    told = tomllib.loads(format_recipe(done.generation, {"reviews": [moved]}))["data"]["reviews"]
    assert told == [str(tmp_path.parent / "raw" / "x.gz")]


def test_locations_are_complete_and_names_are_safe() -> None:
    sizes = {name: len(generation.categories) for name, generation in load_generations().items()}
    assert sizes == {"amazon2014": 24, "amazon2018": 29, "amazon2023": 34}
    for generation in load_generations().values():
        for host in generation.hosts:
            assert host.base.startswith("https://")
            assert set(host.files) == set(generation.kinds)
            assert all("{category}" in path for paths in host.files.values() for path in paths)
            assert {kind for kind in generation.kinds if kind != "meta"} == set(generation.formats)
        assert all(name.replace("_", "").isalnum() for name in generation.categories)
        assert len(mirror_hosts(generation, "https://lab.example/data/")) in (1, 2)


def test_every_shipped_recipe_of_a_raw_category_names_files_that_download_brings() -> None:
    brought = {
        path.format(category=category).rsplit("/", 1)[-1]
        for generation in load_generations().values()
        for paths in generation.hosts[0].files.values()
        for path in paths
        for category in generation.categories
    }
    checked = 0
    for name in list_shipped_names():
        if not name.startswith("amazon20"):
            continue
        data = tomllib.loads((find_shipped_folder() / f"{name}.toml").read_text()).get("data", {})
        files = [*data.get("reviews", ()), *data.get("metadata", ())]
        if not any("Instruments.inter" in file for file in files):
            assert {Path(file).name for file in files} <= brought, name
            checked += len(files)
    assert checked > 10


def test_the_list_names_every_category() -> None:
    shown = CliRunner().invoke(app, ["download", "--list", "amazon2018"]).stdout
    assert "  amazon2018/Gift_Cards\n" in shown
    assert "amazon2023" not in shown
    assert "  amazon2023/Unknown\n" in CliRunner().invoke(app, ["download", "--list"]).stdout
