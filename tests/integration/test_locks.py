"""Two processes and one folder: one makes it, the other waits and reuses, or is refused by name.

The parties are threads here: the first one stays in its critical part until the second one waits
for it, or has come into the same part, which a lock is there to prevent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from filelock import FileLock

from benchmarks.small import RECIPE
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data import formats
from llmrec_cli.data.prepared import load_prepared, write_manifest
from llmrec_cli.errors import ArtefactError, DataError, MachineError
from llmrec_cli.models import loading
from llmrec_cli.pipeline import prepare as prepare_module
from llmrec_cli.pipeline import setup
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.provenance import open_session
from llmrec_cli.runs import record
from llmrec_cli.runs.run import run_at, sft_run
from llmrec_cli.sweep.trial import _link_folders
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.item_scores import load_vectors
from llmrec_cli.utils import files, locks
from llmrec_cli.utils.files import check_folder, create_atomically, write_folder
from llmrec_cli.utils.locks import lock_run, lock_to_make, wait_for_lock
from llmrec_cli.utils.progress import Silent

ROOT = Path(__file__).resolve().parents[2]
_HANG = 60.0  # seconds: a test that hangs fails in the end
SCRATCH = {"hidden": 16, "layers": 1, "heads": 2, "feed_forward": 16, "vocabulary": 300}


class Meeting:
    """Two parties at one place."""

    def __init__(self) -> None:
        self.entries = 0
        self._here, self._met, self._lock = threading.Event(), threading.Event(), threading.Lock()

    def enter(self) -> None:
        """Come into the critical part; the first one stays until the other one is known to be
        there."""
        with self._lock:
            self.entries += 1
            is_second = self.entries == 2
        self._here.set()
        if is_second:
            self._met.set()
        assert self._met.wait(_HANG)

    def arrived(self) -> None:
        """The second one waits, or has done all that it came for."""
        self._met.set()

    def before(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, which begins with ``enter``."""

        def entered(*args: Any, **kwargs: Any) -> Any:
            self.enter()
            return work(*args, **kwargs)

        return entered

    def hold(self, first: Callable[[], Any], second: Callable[[], Any]) -> list[Future[Any]]:
        """Run two parties; the second begins when the first is in the critical part."""
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(first)
            assert self._here.wait(_HANG)
            two = pool.submit(second)
            two.add_done_callback(lambda _: self.arrived())
        return [one, two]


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Meeting:
    """Whoever waits for a lock, and looks who holds it, has arrived."""
    made = Meeting()

    def holder(path: Path) -> str:
        made.arrived()
        return "process 1 on elsewhere"

    monkeypatch.setattr(locks, "_MOMENT", 0.0)
    monkeypatch.setattr(locks, "_read_holder", holder)
    return made


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RECIPE)
    return read_recipe("tiny.toml")


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_two_prepares_make_one_folder_that_its_manifest_vouches_for(
    recipe: Recipe, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both lost, or the manifest of one vouched for rows of the other."""
    monkeypatch.setattr(prepare_module, "read_source", meeting.before(formats.read_source))
    said: list[str] = []
    found = meeting.hold(
        lambda: prepare_data(recipe, Path), lambda: prepare_data(recipe, Path, said.append)
    )
    assert [one.result().reused for one in found] == [False, True]
    assert meeting.entries == 1
    assert "runs/tiny/prepared: waiting for process 1 on elsewhere, which works on it" in said
    assert len(load_prepared(recipe.prepared_folder).split("train")) > 0  # every hash is checked
    assert names_in(recipe.folder) - names_in(recipe.folder / "prepared") == {
        ".prepared.lock",
        "prepared",
        *(f"prepared/{name}" for name in names_in(recipe.prepared_folder)),
    }


def test_without_a_lock_a_manifest_still_vouches_for_its_own_rows(
    tmp_path: Path, recipe: Recipe, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system whose locks hold nobody back: no two processes share a temporary name."""
    own = tmp_path / "lock"
    monkeypatch.setattr(locks, "_acquire_lock", lambda *_: FileLock(own))  # holds nothing
    monkeypatch.setattr(prepare_module, "write_manifest", meeting.before(write_manifest))
    found = meeting.hold(lambda: prepare_data(recipe, Path), lambda: prepare_data(recipe, Path))
    assert found[0].result().manifest == found[1].result().manifest
    assert meeting.entries == 2
    load_prepared(recipe.prepared_folder)
    assert not [name for name in names_in(recipe.folder) if name.endswith(".tmp")]


def test_one_that_fails_leaves_the_folder_to_the_one_that_waits(
    recipe: Recipe, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes back the lock's file and the folders that were made for it."""
    original = formats.read_source

    def read(*args: Any) -> Any:
        meeting.enter()
        if meeting.entries == 1:
            raise DataError("no")
        return original(*args)

    monkeypatch.setattr(prepare_module, "read_source", read)
    first, second = meeting.hold(
        lambda: prepare_data(recipe, Path), lambda: prepare_data(recipe, Path)
    )
    assert isinstance(first.exception(), DataError)
    assert not second.result().reused
    assert names_in(recipe.folder) == {
        ".prepared.lock",
        "prepared",
        *(f"prepared/{name}" for name in names_in(recipe.prepared_folder)),
    }


@pytest.mark.parametrize("gone", [FileNotFoundError, FileExistsError])
def test_a_folder_that_is_taken_back_while_it_is_made_is_made_again(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, gone: type[OSError]
) -> None:
    """mkdir looks twice: whether it is there, and whether its parent is."""
    original, refusals = Path.mkdir, [gone(), gone()]

    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        if refusals and path == recipe.folder:
            raise refusals.pop()
        original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with lock_to_make(recipe.prepared_folder, print):
        assert recipe.folder.is_dir()
    assert not refusals


def test_a_file_in_a_folder_s_place_is_told(recipe: Recipe) -> None:
    recipe.folder.parent.mkdir()
    recipe.folder.write_text("a file")
    with pytest.raises(MachineError), lock_to_make(recipe.prepared_folder, print):
        pass


def test_a_prepare_that_fails_alone_leaves_nothing(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> None:
        raise DataError("no")

    monkeypatch.setattr(prepare_module, "read_source", read)
    with pytest.raises(DataError):
        prepare_data(recipe, Path)
    assert names_in(Path()) == {"tiny.toml"}


def test_sources_that_change_while_they_are_read_are_refused(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest would vouch for a source that the rows are not from."""
    source = tmp_path / "reviews.json.gz"
    source.write_bytes(Path(recipe.data.reviews[0]).read_bytes())
    changed = read_recipe("tiny.toml", [f'data.reviews="{source}"'])
    original = formats.read_source

    def read(*args: Any) -> Any:
        found = original(*args)
        os.utime(source, ns=(0, 0))
        return found

    monkeypatch.setattr(prepare_module, "read_source", read)
    with pytest.raises(DataError, match=r"reviews\.json\.gz: changed while it was read"):
        prepare_data(changed, Path)
    assert not changed.folder.exists()


def test_two_commands_build_one_base(
    recipe: Recipe, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sft, baseline and align on a fresh folder, two died here."""
    prepared = prepare_data(recipe, Path)
    monkeypatch.setattr(loading, "build_scratch", meeting.before(loading.build_scratch))

    def build() -> None:
        setup.ensure_scratch(recipe, prepared, Silent())

    for one in meeting.hold(build, build):
        one.result()
    assert meeting.entries == 1
    check_folder(recipe.folder / "base")


def test_two_commands_store_scores_once(tmp_path: Path, meeting: Meeting) -> None:
    folder = tmp_path / "scores/sasrec-train-0"

    def store() -> torch.Tensor:
        return load_vectors(folder, {"model": "x"}, meeting.before(lambda: torch.ones(2, 3)))

    one, two = meeting.hold(store, store)
    assert torch.equal(one.result(), two.result())
    assert meeting.entries == 1
    check_folder(folder)


def test_what_is_finished_is_read_without_a_lock(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be written, no lock can be made either."""
    prepared = prepare_data(recipe, Path)
    setup.ensure_scratch(recipe, prepared, Silent())
    vectors = load_vectors(tmp_path / "scores/x", {}, lambda: torch.ones(1))

    def refuse(*_: object) -> None:
        raise AssertionError("locked")

    monkeypatch.setattr(locks, "_acquire_lock", refuse)
    assert prepare_data(recipe, Path).reused
    setup.ensure_scratch(recipe, prepared, Silent())
    assert torch.equal(load_vectors(tmp_path / "scores/x", {}, lambda: torch.zeros(1)), vectors)


def test_a_run_folder_at_work_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.0)
    with (
        lock_run(tmp_path / "sft"),
        pytest.raises(ArtefactError, match=rf"sft: another .* in it \(process {os.getpid()} on "),
        lock_run(tmp_path / "sft"),
    ):
        pass
    with lock_run(tmp_path / "sft"):
        pass


@pytest.fixture
def ranks() -> Ranks:
    return Ranks(Accelerator(cpu=True))


def test_a_run_that_another_process_finishes_meanwhile_is_reused(
    recipe: Recipe, meeting: Meeting, monkeypatch: pytest.MonkeyPatch, ranks: Ranks
) -> None:
    """The second of two `run`s looked before the first one was done, and went on in its folder."""
    monkeypatch.setattr(locks, "_acquire_lock", arriving(meeting))
    worked: list[int] = []

    def work(resume: bool) -> bool:
        with open_session(recipe, sft_run(recipe), {}, ranks, Silent(), resume=resume) as opened:
            if not opened.is_finished:
                meeting.enter()
                worked.append(1)
                opened.outcome = {"best_score": 1.0}
        return opened.is_finished

    first, second = meeting.hold(lambda: work(False), lambda: work(True))
    assert (first.result(), second.result()) == (False, True)
    assert len(worked) == 1
    assert files.read_json(recipe.folder / "sft/manifest.json")["outcome"] == {"best_score": 1.0}


def arriving(meeting: Meeting) -> Callable[..., Any]:
    """``locks._acquire_lock``, which has arrived when it has to wait."""
    original = locks._acquire_lock

    def acquired(path: Path, patience: float, busy: Any, check: Any) -> Any:
        return original(path, patience, busy, meeting.arrived)

    return acquired


@pytest.mark.parametrize(
    ("existing", "end"), [("refuse", "was evaluated on test before"), ("keep", ""), ("again", "")]
)
def test_one_evaluation_of_a_run_at_a_time(
    tmp_path: Path,
    meeting: Meeting,
    monkeypatch: pytest.MonkeyPatch,
    ranks: Ranks,
    existing: record.Existing,
    end: str,
) -> None:
    """The lists of one and the report of the other would lie side by side."""
    monkeypatch.setattr(locks, "_acquire_lock", arriving(meeting))
    folder, evaluated = tmp_path / "sft", list[int]()
    folder.mkdir()

    def evaluate() -> None:
        opened = record.open_evaluation(run_at(folder), "test", ranks, existing)
        with opened as is_wanted:
            if is_wanted:
                meeting.enter()
                evaluated.append(1)
                files.write_json(folder / "report.json", {})

    first, second = meeting.hold(evaluate, evaluate)
    first.result()
    if end:
        with pytest.raises(ArtefactError, match=end):
            second.result()
    else:
        second.result()
    assert len(evaluated) == (2 if existing == "again" else 1)


def test_an_evaluation_at_work_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Ranks
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.0)
    said = rf"sft: another llmrec is evaluating it on test \(process {os.getpid()} on "
    with record.open_evaluation(run_at(tmp_path / "sft"), "test", ranks, "again"):
        with (
            pytest.raises(ArtefactError, match=said),
            record.open_evaluation(run_at(tmp_path / "sft"), "test", ranks, "again"),
        ):
            pass
        with record.open_evaluation(run_at(tmp_path / "sft"), "valid", ranks, "refuse") as wanted:
            assert wanted


def test_evaluations_on_two_splits_are_both_counted(
    tmp_path: Path, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_acquire_lock", arriving(meeting))
    monkeypatch.setattr(record, "write_json", meeting.before(files.write_json))
    folder = tmp_path / "sft"
    folder.mkdir()
    ends = meeting.hold(
        lambda: record.count_opening(run_at(folder), "test", {}),
        lambda: record.count_opening(run_at(folder), "valid", {}),
    )
    for one in ends:
        one.result()
    assert files.read_json(folder / "manifest.json")["opened"] == {"test": 1, "valid": 1}


def test_of_two_exports_to_one_folder_the_second_to_end_is_refused(
    tmp_path: Path, meeting: Meeting
) -> None:
    """It came with an empty folder in its way, or none; nothing that is whole is replaced."""
    (tmp_path / "to").mkdir()

    def export(text: str) -> None:
        def fill(folder: Path) -> None:
            (folder / "card").write_text(text)
            if text == "first":
                meeting.enter()

        write_folder(tmp_path / "to", fill, hashes=False, replaces=False)

    first, second = meeting.hold(lambda: export("first"), lambda: export("second"))
    second.result()
    with pytest.raises(ArtefactError, match="to: another process wrote there meanwhile"):
        first.result()
    assert (tmp_path / "to/card").read_text() == "second"
    assert names_in(tmp_path) == {"to", "to/card"}


def test_two_writers_of_one_file_share_no_temporary_name(tmp_path: Path, meeting: Meeting) -> None:
    """`run` and `run` both write report.html; the one that ends last is there, whole."""
    file = tmp_path / "report.html"

    def write(text: bytes) -> None:
        def fill(stream: Any) -> None:
            stream.write(text[:1])
            if text == b"first":
                meeting.enter()
            stream.write(text[1:])

        create_atomically(file, fill)

    for one in meeting.hold(lambda: write(b"first"), lambda: write(b"second")):
        one.result()
    assert file.read_bytes() == b"first"
    assert names_in(tmp_path) == {"report.html"}


WRITES = """
import sys
from pathlib import Path
from llmrec_cli.utils.files import create_atomically, write_folder

def wait(text):
    print("writing", flush=True)
    sys.stdin.read()

def fill(folder):
    (folder / "part").write_text("half")
    wait(folder)

if sys.argv[1] == "file":
    create_atomically(Path(sys.argv[2]), wait)
else:
    write_folder(Path(sys.argv[2]), fill)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.slow
def test_only_a_dead_writers_leftovers_are_removed(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "written"

    def write() -> None:
        if kind == "file":
            create_atomically(target, lambda stream: stream.write(b"whole"))
        else:
            write_folder(target, lambda folder: None)

    words = [sys.executable, "-c", WRITES, kind, str(target)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == b"writing\n"
        (temporary,) = tmp_path.iterdir()
        write()
        assert temporary.exists()
        child.kill()
        child.wait()
        write()
        assert not temporary.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["written"]


def test_leftovers_of_another_machine_go_only_under_a_lock(tmp_path: Path) -> None:
    """Its locks may not be seen here."""
    left = tmp_path / ".prepared.00000000-00000000.tmp"
    left.mkdir()
    write_folder(tmp_path / "prepared", lambda folder: None)
    assert left.exists()
    with lock_to_make(tmp_path / "prepared", print):
        assert not left.exists()


@pytest.mark.slow
def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    words = "import sys\nfrom pathlib import Path\nfrom llmrec_cli.utils.locks import lock_run\n"
    words += "with lock_run(Path(sys.argv[1])):\n    print('locked', flush=True)\n"
    words += "    sys.stdin.read()\n"
    child = subprocess.Popen(
        [sys.executable, "-c", words, str(tmp_path / "sft")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        assert locks.is_held(tmp_path / ".sft.lock")
        child.kill()
        child.wait()
    with lock_run(tmp_path / "sft"):
        assert locks._read_holder(tmp_path / ".sft.lock").startswith(f"process {os.getpid()} on ")


@pytest.mark.slow
def test_an_interrupt_ends_the_waiting(recipe: Recipe) -> None:
    with lock_to_make(recipe.prepared_folder, print):
        child = subprocess.Popen(
            [sys.executable, "-m", "llmrec_cli", "prepare", "tiny.toml"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        with child:
            assert child.stderr is not None
            said = next(line for line in child.stderr if "waiting for" in line)
            assert f"runs/tiny/prepared: waiting for process {os.getpid()} on " in said
            child.send_signal(signal.SIGINT)
            last = child.stderr.read().splitlines()[-1]
    assert child.returncode == 130
    assert last == "llmrec prepare: error: interrupted; go on with: llmrec prepare tiny.toml"


def test_a_sweep_that_is_stopped_does_not_wait_on(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def check() -> None:
        raise Stopped

    lock = tmp_path / ".sweep.lock"
    with (
        wait_for_lock(lock, tmp_path, print),
        pytest.raises(Stopped),
        wait_for_lock(lock, tmp_path, print, check),
    ):
        pass


def test_a_sweep_links_nothing_that_is_being_written(recipe: Recipe) -> None:
    scores = recipe.folder / "scores"
    for name in ("whole", ".whole.1-1.tmp"):
        (scores / name).mkdir(parents=True)
    (scores / ".whole.lock").touch()
    point = read_recipe("tiny.toml", ["name=point"])
    _link_folders(recipe, point, ["scores"])
    assert names_in(point.folder) == {"scores", "scores/whole"}
