"""``run`` and ``validate --rows`` find what would stop a later stage before any is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.small import RECIPE
from llmrec_cli.evaluate import _warn_about_mask
from llmrec_cli.progress import Silent
from llmrec_cli.recipe.file import load_recipe
from tests.experiments import typed

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
    "k": (["align.dmpo.k=100000", "align.dmpo.negatives=uniform"], "[align.dmpo] user "),
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
    loaded = load_recipe(recipe, [*overrides, "eval.decode.mask=after"])
    lines: list[str] = []
    progress = Silent()
    object.__setattr__(progress, "say", lines.append)
    _warn_about_mask(loaded, "align-msl", progress)
    assert [line.startswith("align-msl: warning: trained on legal") for line in lines] == [
        True
    ] * warned
