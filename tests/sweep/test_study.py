"""The study of a sweep: which points are tried, what is remembered, who takes over from whom.

Training is played: a point's figure is a function of its values and its seed.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import tomli_w
from filelock import FileLock
from optuna.trial import TrialState

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import ArtefactError, MachineError, NumbersError, RecipeError, UserError
from llmrec_cli.report.tables import sheet_lines
from llmrec_cli.sweep import study
from llmrec_cli.sweep.board import Board, board_json, board_sheet
from llmrec_cli.sweep.plan import Point, SweepPlan
from llmrec_cli.sweep.search import BEST, search_settings
from llmrec_cli.sweep.study import mask_storage, open_study
from llmrec_cli.sweep.trial import Interrupted, Place, Pruned, Trials, Watch
from llmrec_cli.utils.progress import Silent
from tests.sweep.sweeps import plan_in

pytestmark = pytest.mark.slow  # whole sweeps

Played = Callable[[Point, int, Watch], float]
GRID = ("align.msl.tau=1,2,3",)
TAU = "align.msl.tau"
RANGE = '[sweep]\ntrials = 12\n[sweep.space]\n"align.msl.tau" = { low = 0.1, high = 5.0 }\n'


def play(monkeypatch: pytest.MonkeyPatch, played: Played) -> list[tuple[Point, int]]:
    """Let ``played`` be the training; returns what was asked of it, in order."""
    asked = list[tuple[Point, int]]()

    def score(self: Trials, point: Point, seed: int, place: Place, watch: Watch) -> float:
        asked.append((point, seed))
        return played(point, seed, watch)

    monkeypatch.setattr(Trials, "score_point", score)
    return asked


def tried(plan: SweepPlan, **how: Any) -> Board:
    how = {"storage": None, "workers": 1, **how}
    return search_settings(plan, progress=Silent(), **how)


def test_a_study_follows_the_umask(tmp_path: Path) -> None:
    """Of a group's shared folder: every member may add points."""
    before = os.umask(0o002)
    try:
        with open_study(plan := plan_in(tmp_path, *GRID), None):
            files = [path for path in plan.folder.rglob("*") if path.is_file()]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    finally:
        os.umask(before)
    assert {study.DATABASE, ".open.lock"} <= set(modes)
    assert set(modes.values()) == {0o664}


def tau(point: Point, seed: int, watch: Watch) -> float:
    return float(point[TAU]) / 10 + seed / 100


def test_a_grid_is_tried_whole_and_judged_by_the_mean_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = play(monkeypatch, tau)
    board = tried(plan_in(tmp_path, *GRID, seeds=[0, 4]))
    assert [(point[TAU], seed) for point, seed in asked] == [
        (value, seed) for value in "123" for seed in (0, 4)
    ]
    assert [row.point[TAU] for row in board.rank_tried()] == ["3", "2", "1"]
    assert board.best is not None
    assert board.best.figures == pytest.approx((0.30, 0.34))
    assert board.best.value == pytest.approx(0.32)


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_in(tmp_path, *GRID)
    play(monkeypatch, tau)
    first = tried(plan)
    asked = play(monkeypatch, tau)
    assert tried(plan) == first
    assert asked == []


def test_more_points_may_be_asked_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = play(monkeypatch, tau)
    tried(plan_in(tmp_path, section=RANGE, trials=3))
    tried(plan_in(tmp_path, section=RANGE, trials=5))
    assert len(asked) == 5
    assert len({point[TAU] for point, _ in asked}) == 5
    assert all(0.1 <= float(point[TAU]) <= 5.0 for point, _ in asked)


def test_tpe_looks_where_figures_are_high(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def distance(sampler: str) -> float:
        """Mean distance of the later points from the best value."""
        (tmp_path / sampler).mkdir()
        section = RANGE.replace("trials = 12", f'trials = 40\nsampler = "{sampler}"')
        asked = play(monkeypatch, lambda point, *_: -((float(point[TAU]) - 2.0) ** 2))
        tried(plan_in(tmp_path / sampler, section=section))
        return sum(abs(float(point[TAU]) - 2.0) for point, _ in asked[20:]) / 20

    assert distance("tpe") < distance("random")


def test_an_interrupted_point_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, at_the_second = plan_in(tmp_path, *GRID), threading.Event()

    def until_stopped(point: Point, seed: int, watch: Watch) -> float:
        if point[TAU] == "2":
            at_the_second.set()
            while not watch.should_stop():
                time.sleep(0.01)
            raise Interrupted
        return tau(point, seed, watch)

    def signalled(futures: object) -> list[Any]:
        assert at_the_second.wait(30)
        raise KeyboardInterrupt

    play(monkeypatch, until_stopped)
    with monkeypatch.context() as patch:
        patch.setattr("llmrec_cli.sweep.search.as_completed", signalled)
        with pytest.raises(KeyboardInterrupt):
            tried(plan)
    asked = play(monkeypatch, tau)
    board = tried(plan)
    assert sorted(point[TAU] for point, _ in asked) == ["2", "3"]
    assert sorted(row.point[TAU] for row in board.tried) == ["1", "2", "3"]
    assert {row.state for row in board.tried} == {"complete"}


@pytest.mark.parametrize("shares_a_folder", [True, False])
def test_a_dead_process_leaves_its_point_to_the_next_one_and_a_living_one_keeps_it(
    shares_a_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path, *GRID)
    play(monkeypatch, tau)
    with open_study(plan, None) as points:
        assert points.ask_trial() is not None  # and then the process is killed
        owner = points._owner
    sign = plan.folder / f".alive-{owner}"
    if shares_a_folder:
        with FileLock(sign):
            assert [row.state for row in tried(plan).tried].count("running") == 1
        sign.touch()  # as a kill leaves it: there, and nobody holds it
    else:
        assert [row.state for row in tried(plan).tried].count("running") == 1
        later = time.time() + study._SILENT + 1
        monkeypatch.setattr("llmrec_cli.sweep.study.time.time", lambda: later)
    board = tried(plan)
    assert [row.state for row in board.tried] == ["complete"] * 3
    assert sorted(row.point[TAU] for row in board.tried) == ["1", "2", "3"]


def test_two_workers_share_the_points_and_no_point_is_tried_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, at_once = threading.Barrier(2, timeout=30), list[str]()

    def together(point: Point, seed: int, watch: Watch) -> float:
        both.wait()
        at_once.append(point[TAU])
        return tau(point, seed, watch)

    play(monkeypatch, together)
    board = tried(plan_in(tmp_path, "align.msl.tau=1,2,3,4"), workers=2)
    assert sorted(at_once) == ["1", "2", "3", "4"]
    assert [row.state for row in board.tried] == ["complete"] * 4


ASKS = """
import sys
from llmrec_cli.sweep.plan import make_plan
from llmrec_cli.sweep.study import open_study

recipe, out = sys.argv[1:]
values = ",".join(map(str, range(1, 41)))
plan = make_plan(recipe, [f"out={out}", "name=tiny"], {}, [f"align.msl.tau={values}"], "study")
with open_study(plan, None) as points:
    print("ready", flush=True)
    sys.stdin.readline()
    while (trial := points.ask_trial()) is not None:
        print(points.read_point(trial)["align.msl.tau"])
"""


def test_two_processes_get_every_point_once(tmp_path: Path) -> None:
    """SQLite lets two processes take one queued trial of optuna's; the study's lock does not."""
    plan_in(tmp_path, *GRID)  # writes the recipe
    words = [sys.executable, "-c", ASKS, str(tmp_path / "tiny.toml"), str(tmp_path / "runs")]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    got = [process.communicate()[0].split() for process in both]
    assert sorted(map(int, got[0] + got[1])) == list(range(1, 41))


@pytest.mark.parametrize("killed_in", ["enqueue_trial", "tell"])
@pytest.mark.parametrize("after", [True, False])
def test_a_kill_while_a_point_is_queued_again_neither_loses_nor_doubles_it(
    killed_in: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, whole = plan_in(tmp_path, *GRID), getattr(optuna.Study, killed_in)

    def killed(*given: Any, **named: Any) -> None:
        if after:
            whole(*given, **named)
        raise KeyboardInterrupt

    with open_study(plan, None) as points:
        trial = points.ask_trial()
        assert trial is not None
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, killed_in, killed)
            with pytest.raises(KeyboardInterrupt):
                points.requeue_trial(trial)
    monkeypatch.setattr(study, "_SILENT", -1.0)
    asked = play(monkeypatch, tau)
    board = tried(plan)
    assert sorted(point[TAU] for point, _ in asked) == ["1", "2", "3"]
    assert [row.state for row in board.tried] == ["complete"] * 3


def test_marks_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Studies that an earlier version left: what it queued again shows once."""
    plan = plan_in(tmp_path, *GRID)
    with open_study(plan, None) as points:
        old, plain = points._study, list[optuna.trial.Trial]()
        for _ in range(3):
            trial = points.ask_trial()
            assert trial is not None
            plain.append(trial)
        plain[0].set_user_attr(study.INTERRUPTED, True)
        for trial in plain[:2]:
            old.tell(trial, state=TrialState.FAIL)
        old.set_user_attr(study._AGAIN, [1])
        assert [row.point[TAU] for row in points.list_tried()] == ["3"]


def test_points_behind_the_median_are_pruned_by_the_first_seed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validating(point: Point, seed: int, watch: Watch) -> float:
        for number in (1, 2):
            if watch.should_prune(number, float(point[TAU]) if seed == 0 else -1.0):
                raise Pruned
        return tau(point, seed, watch)

    play(monkeypatch, validating)
    grid = "align.msl.tau=5,6,7,8,1,2,9"
    board = tried(plan_in(tmp_path, grid, prune=True, seeds=[0, 1]))
    states = {row.point[TAU]: row.state for row in board.tried}
    assert {key for key, state in states.items() if state == "pruned"} == {"1", "2"}
    (tmp_path / "whole").mkdir()
    whole = tried(plan_in(tmp_path / "whole", grid, seeds=[0, 1]))
    assert {row.state for row in whole.tried} == {"complete"}


def test_a_point_that_fails_ends_no_sweep_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exploding(point: Point, seed: int, watch: Watch) -> float:
        if point[TAU] == "2":
            raise NumbersError("align: step 3: loss = nan")
        return tau(point, seed, watch)

    play(monkeypatch, exploding)
    board = tried(plan_in(tmp_path, *GRID))
    assert [row.state for row in board.rank_tried()] == ["complete", "complete", "failed"]
    assert "loss = nan" in "\n".join(sheet_lines(board_sheet(board)))


def test_a_point_that_the_machine_failed_is_tried_again_by_the_next_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path, *GRID)

    def full(point: Point, seed: int, watch: Watch) -> float:
        if point[TAU] == "2":
            raise MachineError("runs: No space left on device")
        if point[TAU] == "3":
            raise NumbersError("step 3: the loss is NaN")
        return tau(point, seed, watch)

    play(monkeypatch, full)
    assert [row.state for row in tried(plan).tried] == ["complete", "failed", "failed"]
    asked = play(monkeypatch, tau)
    board = tried(plan)
    assert [point[TAU] for point, _ in asked] == ["2"]
    assert [(row.point[TAU], row.state) for row in board.tried] == [
        ("1", "complete"),
        ("3", "failed"),
        ("2", "complete"),
    ]
    play(monkeypatch, tau)
    assert tried(plan).tried == board.tried


def test_a_user_error_ends_the_sweep_and_a_mended_recipe_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path, *GRID)

    def refused(point: Point, seed: int, watch: Watch) -> float:
        raise UserError("prepare: reviews.json.gz: no such file")

    play(monkeypatch, refused)
    with pytest.raises(UserError, match="no such file"):
        tried(plan)
    play(monkeypatch, tau)
    assert {row.state for row in tried(plan).tried} == {"complete"}


def test_a_sweep_without_any_figure_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exploding(point: Point, seed: int, watch: Watch) -> float:
        raise NumbersError("align: nan")

    play(monkeypatch, exploding)
    plan = plan_in(tmp_path, *GRID)
    with pytest.raises(MachineError, match=r"no point came to its end; the last one: align: nan"):
        tried(plan)
    assert not (plan.folder / BEST).exists()


@pytest.mark.parametrize(
    ("grid", "how", "message"),
    [
        ("align.msl.tau=1,2,4", {}, r"begun with space\.align\.msl\.tau = \['1', '2', '3'\]"),
        (GRID[0], {"seeds": [1]}, r"begun with seeds = \[0\], now \[1\]"),
        (GRID[0], {"overrides": ("sft.train.batch=7",)}, r"sft\.train\.batch = 16, now 7"),
    ],
)
def test_a_study_goes_on_with_its_own_plan_alone(
    grid: str,
    how: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = play(monkeypatch, tau)
    tried(plan_in(tmp_path, *GRID))
    with pytest.raises(ArtefactError, match=message):
        tried(plan_in(tmp_path, grid, **how))
    assert len(asked) == 3


def test_the_best_recipe_is_the_given_one_with_the_best_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tau)
    plan = plan_in(tmp_path, *GRID, overrides=("train.batch=12",))
    tried(plan)
    text = (plan.folder / BEST).read_text()
    assert "test split was not looked at" in text
    best = read_recipe(str(plan.folder / BEST))
    assert (best.name, best.align["msl"].train.batch) == ("tiny-best", 12)
    assert best.to_table()["align"]["msl"]["tau"] == 3
    assert best.data == plan.recipe.data


def test_paths_of_the_best_recipe_lead_where_they_led(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe's ``../`` begins at the recipe file, and that of the best one lies elsewhere."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    play(monkeypatch, tau)
    plan = plan_in(Path("../recipes"), *GRID, overrides=("out=runs",))
    given = tomllib.loads(Path("../recipes/tiny.toml").read_text())
    given["data"]["reviews"] = "../raw/reviews.json.gz"
    Path("../recipes/tiny.toml").write_text(tomli_w.dumps(given))
    tried(plan)
    best = read_recipe(str(plan.folder / BEST))
    (found,) = best.data.reviews
    assert Path(found).resolve() == tmp_path / "raw/reviews.json.gz"


def test_a_board_as_json_and_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, tau)
    board = tried(plan_in(tmp_path, *GRID, seeds=[0, 2]))
    plain = json.loads(json.dumps(board_json(board, "best.toml")))
    assert (plain["split"], plain["metric"], len(plain["trials"])) == ("valid", "ndcg@10", 3)
    assert plain["best"] == plain["trials"][0]
    lines = sheet_lines(board_sheet(board))
    assert lines[1].split()[:3] == ["#", "tau", "ndcg@10"]
    assert lines[2].split()[:5] == ["1", "3", "0.3100", "0.3000", "0.3200"]


def test_any_storage_of_optunas_serves_and_its_password_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tau)
    plan = plan_in(tmp_path, *GRID)
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    tried(plan, storage=url)
    assert (tmp_path / "shared.db").is_file()
    assert not (plan.folder / "study.db").exists()
    url = "postgresql://user:hunter2@localhost/base"
    assert "hunter2" not in mask_storage(url)
    with pytest.raises((MachineError, RecipeError)) as caught:
        tried(plan, storage=url)
    assert "hunter2" not in str(caught.value)
    for word in ("hunter2", "redis://localhost:1", "sqlite:///{0}.db", "sqlite:///x.db?uri=maybe"):
        with pytest.raises(RecipeError, match="not a storage URL"):
            tried(plan, storage=word)
    with pytest.raises(MachineError, match="unable to open database file"):
        tried(plan, storage=f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}")


def test_optuna_that_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path, *GRID)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "llmrec_cli.sweep.study")
    with pytest.raises(MachineError, match=r"optuna is not installed: pip install 'llmrec\[sweep"):
        tried(plan)
