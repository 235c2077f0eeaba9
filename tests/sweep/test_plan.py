"""What a sweep is asked to do, and what it refuses before anything is made."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.training import Range
from llmrec_cli.errors import RecipeError
from llmrec_cli.runs.run import experiment_of
from llmrec_cli.sweep.plan import format_toml, hash_point, list_needed_runs
from tests.sweep.sweeps import plan_in

SPACE = """
[sweep]
trials = 7
seeds = [3, 4]
[sweep.space]
"align.msl.tau" = { low = 0.5, high = 2.0, log = true }
"align.msl.train.batch" = { low = 8, high = 16 }
"""


def test_a_grid_is_every_combination_and_the_last_key_varies_fastest(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "align.msl.tau=1,ats", "align.msl.train.learning_rate=1e-3,1e-4")
    assert plan.run == "align-msl"
    assert plan.trials == 4
    assert plan.list_points() == [
        {"align.msl.tau": tau, "align.msl.train.learning_rate": rate}
        for tau in ("1", '"ats"')
        for rate in ("0.001", "0.0001")
    ]


def test_a_section_gives_ranges_trials_and_seeds_and_the_command_line_goes_before_it(
    tmp_path: Path,
) -> None:
    plan = plan_in(tmp_path, section=SPACE)
    assert isinstance(plan.space["align.msl.tau"], Range)
    assert (plan.trials, plan.seeds) == (7, (3, 4))
    plan = plan_in(tmp_path, section=SPACE, trials=9, seeds=[5])
    assert (plan.trials, plan.seeds) == (9, (5,))
    plan = plan_in(tmp_path, "sft.train.batch=8,16", section=SPACE)
    assert (plan.run, plan.trials, list(plan.space)) == ("sft", 2, ["sft.train.batch"])


@pytest.mark.parametrize("value", [True, 3, 0.1, 1e-30, "a \"b\" \\ 'c'", "é", [1, 2], ["x", "y"]])
def test_values_survive_their_way_through_toml(value: Any) -> None:
    assert tomllib.loads(f"value = {format_toml(value)}")["value"] == value


def test_points_have_a_folder_of_their_own_and_equal_points_the_same(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "align.msl.tau=1,2", seeds=[0, 1])
    first, second = plan.list_points()
    folders = {
        plan.load_point(point, seed)[0].folder for point in (first, second) for seed in plan.seeds
    }
    assert len(folders) == 4
    assert all(folder.parent == plan.folder for folder in folders)
    assert hash_point({"a": "1", "b": "2"}) == hash_point({"b": "2", "a": "1"})


def test_the_shared_runs_are_the_experiments_own_for_its_own_seed(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, "align.msl.tau=1,2", seeds=[0, 1])
    assert plan.load_shared(0)[0].folder == plan.recipe.folder
    other = plan.load_shared(1)[0]
    assert other.folder == plan.folder / "seed-1"
    assert other.seed == 1


def test_what_a_run_needs_comes_before_it(tmp_path: Path) -> None:
    recipe = read_recipe("quickstart", ["align.later={parent='dmpo', method='msl'}"])
    before = {
        run.name: list(map(str, list_needed_runs(recipe, run)))
        for run in experiment_of(recipe).runs
    }
    assert before["align-dmpo"] == ["sft"]
    assert before["align-later"] == ["sft", "align-dmpo"]
    assert before["align-msl"] == []  # from the base
    assert before["align-ilrec"] == ["baseline-sasrec"]  # whose scores are its rewards
    assert before["sft"] == []


@pytest.mark.parametrize(
    ("grid", "asked", "message"),
    [
        ("align.msl.tau", {}, r"--grid align\.msl\.tau: expected KEY=VALUE,VALUE"),
        ("align.msl.tau=", {}, r"expected KEY=VALUE,VALUE"),
        ("align.msl.tua=1,2", {}, r"unknown key\. Did you mean tau\?"),
        ("align.msl.tau=1,-2", {}, r"tau = -2: expected"),
        ("align.msx.tau=1,2", {}, r"Did you mean msl\?"),
        ("tran.batch=8,16", {}, r"Did you mean train\?"),
        ("train.batch=8,16", {}, r"belong to every run; say which run is judged with --stage"),
        ("align.msl.tau=1,2", {"stage": "align-mls"}, r"Did you mean msl\?"),
        ("data.k_core=3,5", {}, r"data\.k_core changes the validation rows"),
        ("eval.cutoffs=[5],[10]", {}, r"changes how validation is scored"),
        ("sft.train.select=ndcg,loss", {}, r"changes how validation is scored"),
        (
            "align.msl.tau=1,2",
            {"stage": "sfft"},
            r"--stage sfft: unknown, .* Did you mean sft\?",
        ),
        ("seed=1,2", {}, r"--seeds"),
        ("launch.threads=1,2", {}, r"changes nothing"),
        ("baseline.itemknn.shrink=1,2", {}, r"fitted without validation"),
    ],
)
def test_what_cannot_be_swept_is_one_line(
    grid: str, asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_in(tmp_path, grid, **asked)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("", "nothing to sweep"),
        ("[sweep]\ntrails = 3\n", "Did you mean trials"),
        ("[sweep]\nsampler = 'tpr'\n", "sampler"),
        ('[sweep.space]\n"align.msl.tau" = []\n', "expected at least one value"),
        ('[sweep.space]\n"align.msl.tau" = { low = 2, high = 1 }\n', "expected low < high"),
        ('[sweep.space]\n"align.msl.tau" = { low = 0, high = 1, log = true }\n', "low > 0"),
        ('[sweep.space]\n"align.msl.tau" = { low = -1, high = 1 }\n', "tau = -1"),
        ('[sweep]\nsampler = "grid"\n[sweep.space]\n"align.msl.tau" = { low = 1, high = 2 }\n',
         "tries lists"),
        ('[sweep.space]\n"align.msl.tau" = [1, 2]\n"baseline.sasrec.hidden" = [8, 16]\n',
         "belong to align-msl, baseline-sasrec"),
        ('[align.msl.train]\nselect = "loss"\n[sweep.space]\n"align.msl.tau" = [1, 2]\n',
         "losses under different options do not compare"),
    ],
)  # fmt: skip
def test_a_section_that_cannot_work_is_one_line(section: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_in(tmp_path, section=section)


@pytest.mark.starts_python("it shows that no torch is imported")
def test_a_plan_is_made_without_torch_or_optuna(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from llmrec_cli.sweep.plan import make_plan\n"
        "make_plan('quickstart', [], {}, ['align.dmpo.beta=0.1,0.5'], 'study')\n"
        "assert not {'torch', 'optuna', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
