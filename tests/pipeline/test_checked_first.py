"""``run`` and ``validate --rows`` find what would stop a later stage before any is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.small import RECIPE
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.pipeline.evaluate import _warn_about_mask
from llmrec_cli.runs.run import align_run
from llmrec_cli.utils.progress import Silent
from tests.experiments import typed

pytestmark = pytest.mark.slow  # experiments of its own

MORE = """
[align.dmpo]
[align.ilrec]
n = 1
crr = false
"""
IMPOSSIBLE = {
    "tau": (
        ["align.msl.tau=ats", "align.msl.ats_eta=1e-6"],
        "[align.msl] ats_eta = 1e-06: ats_eta * N must be > 1",
    ),
    "k": (
        ["align.dmpo.k=100000", "align.dmpo.negatives=uniform"],
        "[align.dmpo] user ",
    ),
    "none left": (
        [
            "align.dmpo.k=100000",
            "align.dmpo.negatives=uniform",
            "align.dmpo.short=drop",
        ],
        "[align.dmpo] none of 6,355 training rows has k = 100000 possible negatives",
    ),
    "scores of nobody": (
        ["align.ilrec.crr=true", "align.ilrec.scores=sasrce"],
        'add the table with model = "sasrec", and run first: llmrec baseline --model sasrce '
        "small.toml align.ilrec.crr=true align.ilrec.scores=sasrce. Did you mean sasrec?",
    ),
    "in-batch": (
        ["align.dmpo.negatives=in-batch", "align.dmpo.k=16", "align.dmpo.train.rows=window"],
        '[align.dmpo] k = 16: negatives = "in-batch" draws from the other rows of an update',
    ),
    "reference": (["align.dmpo.parent=base"], '[align.dmpo] parent = "base": dmpo is measured'),
    "layers": (["align.ilrec.n=2"], "[align.ilrec] 2 layers before the last are asked for"),
    "scores": (
        ["align.ilrec.crr=true", "align.ilrec.scores=itemknn"],
        '[baseline.itemknn] model = "itemknn": has no state of a history',
    ),
    "prompt": (
        ["prompt.template=items", "prompt.max_tokens=16", "train.rows=window"],
        "prompt.max_tokens = 16: the template alone takes",
    ),
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(f'name = "small"\n{RECIPE}{MORE}')
    return "small.toml"


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_stage_that_cannot_work_is_found_before_any_other_is_trained(
    recipe: str, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, message = IMPOSSIBLE[case]
    done = typed(capsys, "run", recipe, *overrides)
    assert (done.code, message in done.err) == (2, True), done.err
    trained = {path.name for path in Path("runs/small").glob("[!.]*")} - {"prepared", "base"}
    assert trained == set()


def test_validate_finds_it_too(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = typed(capsys, "validate", recipe, "--rows", *IMPOSSIBLE["tau"][0])
    assert (done.code, IMPOSSIBLE["tau"][1] in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        ([], True),  # MSL
        (["align.msl.method=ilrec", "align.msl.support=legal", "align.msl.crr=false"], True),
        (["align.msl.method=ilrec", "align.msl.crr=false"], False),
        (["align.msl.method=lml"], False),
    ],
)
def test_whoever_trained_on_legal_tokens_is_warned_of_another_mask(
    recipe: str, overrides: list[str], warned: bool
) -> None:
    Path(recipe).write_text(Path(recipe).read_text().replace("tau", "# tau"))
    loaded = read_recipe(recipe, [*overrides, "eval.decode.mask=after"])
    lines: list[str] = []
    progress = Silent()
    object.__setattr__(progress, "say", lines.append)
    _warn_about_mask(loaded, align_run(loaded, "msl"), progress)
    assert [line.startswith("align-msl: warning: trained on legal") for line in lines] == [
        True
    ] * warned


def test_data_prepared_with_other_choices_are_refused_by_every_stage(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """``data.k_core=4`` behind ``sft`` was trained on whatever lay there, and recorded as 4."""
    assert typed(capsys, "prepare", recipe).code == 0
    for words in (("sft",), ("baseline", "--model", "itemknn"), ("audit",)):
        done = typed(capsys, *words, recipe, "data.k_core=4")
        assert done.code == 2
        assert "prepared with data.k_core = 5, the recipe has 4" in done.err


def test_a_finished_run_of_other_settings_is_found_first(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, "prepare", recipe).code == 0
    assert typed(capsys, "sft", recipe).code == 0
    for command in ("run", "validate"):
        done = typed(capsys, command, recipe, "train.learning_rate=1e-4")
        assert done.code == 2, done.out
        assert "sft: started with stage.train.learning_rate = 0.003, now 0.0001" in done.err
    assert not Path("runs/small/baseline-itemknn").exists()


def test_data_to_evaluate_on_are_those_of_the_recipe(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = RECIPE.partition("[data]")[2].partition("[model]")[0]
    Path(recipe).write_text(Path(recipe).read_text() + f"[eval.data]{data}")
    assert typed(capsys, "prepare", recipe).code == 0
    assert typed(capsys, "sft", recipe).code == 0
    done = typed(capsys, "eval", recipe, "--run", "sft", "eval.data.k_core=4")
    assert done.code == 2
    assert "prepared-eval: prepared with data.k_core = 5, the recipe has 4" in done.err
