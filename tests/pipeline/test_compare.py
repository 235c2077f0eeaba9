"""``llmrec compare``: what is found, what belongs together, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.errors import ArtefactError, UserError
from llmrec_cli.evaluation.predictions import read_predictions
from llmrec_cli.pipeline.compare import Asked, Compared, compare_experiment, compare_runs
from llmrec_cli.pipeline.evaluate import evaluate_runs
from llmrec_cli.pipeline.run import run
from llmrec_cli.report.outputs import write_reports
from llmrec_cli.report.tables import comparison_to_json
from llmrec_cli.utils.files import write_json
from llmrec_cli.utils.progress import Silent
from tests.experiments import Told, make_experiment, typed

pytestmark = pytest.mark.slow


NAMES = ["baseline-itemknn", "baseline-pop", "sft", "align-msl"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one recipe, and a third experiment whose SFT learned faster."""
    home = tmp_path_factory.mktemp("compare")
    make_experiment(home, "s1", "seed=1")
    make_experiment(home, "s2", "seed=2")
    make_experiment(home, "fast", "seed=3", "sft.train.learning_rate=1e-2")
    return home


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def copied(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment of one's own to damage; its folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "runs/s1", tmp_path / "runs/s1")
    shutil.copy(made / "tiny.toml", tmp_path)
    return Path("runs/s1")


def names(found: Compared) -> list[str]:
    return [standing.name for standing in found.comparison.standings]


def standing(found: Compared, name: str) -> Any:
    return next(s for s in found.comparison.standings if s.name == name)


def test_an_experiment_has_its_runs_in_the_recipes_order_against_sft(home: Path) -> None:
    found = compare_runs(["runs/s1"], Asked())
    assert names(found) == NAMES
    assert found.comparison.baseline == "sft"
    assert found.comparison.compared == "ndcg@10"
    assert [s.kind for s in found.comparison.standings] == ["conventional"] * 2 + [
        "language model"
    ] * 2
    assert [s.why_not for s in found.comparison.standings] == [None] * 4
    assert standing(found, "align-msl").sources == ("s1/align-msl",)


def test_the_figures_are_those_of_the_reports(home: Path) -> None:
    found = compare_runs(["runs/s1"], Asked())
    for name in NAMES:
        report = json.loads(Path(f"runs/s1/{name}/report.json").read_text())
        for policy in ("keep", "remove"):
            for metric, recorded in report[policy]["metrics"].items():
                ours = standing(found, name).metrics[policy][metric]
                assert ours.mean == pytest.approx(recorded["mean"], abs=1e-12)
                assert ours.low == pytest.approx(recorded["low"], abs=1e-12)
                assert ours.high == pytest.approx(recorded["high"], abs=1e-12)


def test_a_recipe_names_its_experiment_and_run_has_written_the_same(home: Path) -> None:
    by_folder = comparison_to_json(compare_runs(["runs/s1"], Asked()).comparison)
    assert (
        comparison_to_json(compare_runs(["tiny.toml", "name=s1"], Asked()).comparison) == by_folder
    )
    assert json.loads(Path("runs/s1/comparison.json").read_text()) == by_folder
    assert "/work" not in Path("runs/s1/comparison.json").read_text()
    assert str(home) not in Path("runs/s1/comparison.json").read_text()


def test_single_runs_are_compared_in_the_order_given_and_once(home: Path) -> None:
    found = compare_runs(["runs/s1/align-msl", "runs/s1/sft", "runs/s1/../s1/sft/"], Asked())
    assert names(found) == ["align-msl", "sft"]
    assert found.comparison.baseline == "sft"


def test_runs_that_differ_only_by_their_seed_are_one_entry(home: Path) -> None:
    found = compare_runs(["runs/s2", "runs/s1"], Asked())
    assert names(found) == NAMES
    ours = standing(found, "align-msl")
    assert ours.seeds == (1, 2)
    assert ours.sources == ("s1/align-msl", "s2/align-msl")
    assert len(ours.metrics["keep"]["ndcg@10"].by_seed) == 2
    assert len(ours.contrasts["keep"]["ndcg@10"].by_seed) == 2
    assert standing(found, "baseline-pop").seeds == ()
    assert "s1/baseline-pop is s2/baseline-pop: counted on the same data" in found.comparison.notes


def test_other_settings_make_another_entry_even_where_a_parent_has_them(home: Path) -> None:
    """``align-msl`` of ``fast`` has the very settings of the others; its parent does not."""
    found = compare_runs(["runs/s1", "runs/s2", "runs/fast"], Asked())
    told = {s.name: s.seeds for s in found.comparison.standings}
    assert told == {
        "baseline-itemknn": (),
        "baseline-pop": (),
        "s1/sft": (1, 2),
        "s1/align-msl": (1, 2),
        "fast/sft": (3,),
        "fast/align-msl": (3,),
    }
    assert found.comparison.baseline == "s1/sft"
    assert standing(found, "fast/sft").why_not is None  # another method is what one compares


def test_the_same_seed_twice_is_no_second_seed(made: Path, copied: Path) -> None:
    found = compare_runs([str(made / "runs/s1"), str(copied)], Asked())
    assert standing(found, "baseline-pop")
    twice = [s for s in found.comparison.standings if s.name.endswith("sft")]
    assert [s.seeds for s in twice] == [(1,), (1,)]
    assert len({s.name for s in twice}) == 2


def test_a_baseline_a_policy_and_a_metric_may_be_chosen(home: Path) -> None:
    asked = Asked(baseline="baseline-pop", seen="remove", metric="hr@5")
    found = compare_runs(["runs/s1"], asked).comparison
    assert (found.baseline, found.headline, found.compared) == ("baseline-pop", "remove", "hr@5")
    assert not found.standings[1].contrasts["remove"]
    assert found.standings[2].contrasts["remove"]["hr@5"].p <= 1


def test_what_was_not_evaluated_is_a_note_in_an_experiment(copied: Path) -> None:
    (copied / "align-msl/report.json").unlink()
    found = compare_runs(["runs/s1"], Asked())
    assert names(found) == NAMES[:-1]
    assert found.comparison.notes[0] == "s1: not evaluated on test yet: align-msl"


def test_a_run_has_as_many_validations_as_its_log(home: Path) -> None:
    found = {}
    for entry in compare_runs(["runs/s1"], Asked()).entries:
        (one,) = entry.evaluations
        assert one.folder is not None
        log = one.folder / "metrics.jsonl"
        assert one.validations == (
            (log.read_text().count("valid_loss") or None) if log.exists() else None
        )
        found[one.run] = one.validations
    assert found["baseline-pop"] is None
    assert found["sft"] is not None


def test_an_unfinished_run_is_told_once_with_the_command(copied: Path) -> None:
    (copied / "align-msl/report.json").unlink()
    manifest = copied / "align-msl/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": "running"}))
    told = (
        "s1: not evaluated on test yet: align-msl, which is not finished (llmrec align --method "
        "msl RECIPE --resume)"
    )
    assert compare_runs(["runs/s1"], Asked()).comparison.notes[0] == told
    found = evaluate_runs(
        read_recipe("runs/s1/sft/recipe.toml"),
        None,
        split="test",
        again=False,
        keep=True,
        progress=Silent(),
    )
    assert [note for note in found.comparison.notes if "align-msl" in note] == [told]


def test_what_has_to_be_known_about_the_data_is_a_note(home: Path) -> None:
    notes = compare_runs(["runs/s1", "runs/s2"], Asked()).comparison.notes
    audits = [note for note in notes if note.startswith("audit of s1: ")]
    assert len(audits) == 1
    assert "interactions that tie in time: 870 of 969" in audits[0]
    assert "note:" not in audits[0]


def test_costs_are_summed_over_what_a_run_stands_on(home: Path) -> None:
    found = compare_runs(["runs/s1"], Asked())
    rows = {
        name: [
            json.loads(x)
            for x in Path(f"runs/s1/{name}/metrics.jsonl").read_text().split("\n")
            if x
        ]
        for name in ("sft", "align-msl")
    }
    seconds = {name: sum(row["seconds"] for row in own) for name, own in rows.items()}
    cost = standing(found, "align-msl").cost
    assert cost.train_seconds == pytest.approx(seconds["align-msl"])
    assert cost.lineage_seconds == cost.device_seconds == pytest.approx(sum(seconds.values()))
    assert cost.valid_seconds == pytest.approx(rows["align-msl"][-1]["valid_seconds"])
    assert cost.tokens == sum(row["tokens"] for own in rows.values() for row in own)
    assert (cost.device, cost.processes) == ("cpu", 1)
    assert 50 << 20 < cost.peak_bytes < 8 << 30
    report = json.loads(Path("runs/s1/align-msl/report.json").read_text())["cost"]
    assert cost.milliseconds_per_row == pytest.approx(1000 / report["rows_per_second"])
    assert cost.eval_peak_bytes == report["peak_bytes"]
    assert cost.eval_seconds == report["seconds"] >= 60 / report["rows_per_second"] - 0.002
    counted = standing(found, "baseline-itemknn").cost
    assert counted.tokens == 0
    assert counted.train_seconds == counted.lineage_seconds > 0


def test_costs_that_an_older_run_has_not_recorded_are_unknown(copied: Path) -> None:
    for name in NAMES:
        path = copied / name / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["cost"]
        write_json(path, manifest)
    (copied / "sft/metrics.jsonl").unlink()
    found = compare_runs(["runs/s1"], Asked())
    cost = standing(found, "align-msl").cost
    assert cost.train_seconds > 0
    assert (cost.lineage_seconds, cost.tokens, cost.peak_bytes, cost.device) == (None,) * 4
    assert standing(found, "baseline-itemknn").cost.train_seconds is None


def swap_lists(folder: Path) -> None:
    shutil.copy(
        folder / "baseline-pop/predictions.parquet", folder / "align-msl/predictions.parquet"
    )


def change_report(key: str, value: object) -> Any:
    def change(folder: Path) -> None:
        path = folder / "align-msl/report.json"
        write_json(path, json.loads(path.read_text()) | {key: value})

    return change


def change_lists(**columns: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "align-msl/predictions.parquet"
        read_predictions(path).assign(**columns).to_parquet(path)

    return change


def change_prepared(folder: Path) -> None:
    frame = pd.read_parquet(folder / "prepared/test.parquet")
    frame.iloc[::-1].to_parquet(folder / "prepared/test.parquet")


def other_prepared(folder: Path) -> None:
    path = folder / "prepared/manifest.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap_lists, "align-msl: its report has .* they do not belong together"),
        (change_report("protocol", {}), "not a report of llmrec eval: no protocol.split"),
        (change_report("entries", 300), "300 catalogue entries by its tokens, 311 by title"),
        (change_report("keep", []), "no keep.metrics"),
        (change_report("keep", {"metrics": {"hr@5": 1}}), "no figures at its cut-offs"),
        (lambda f: (f / "sft/report.json").write_text("{"), "report.json: not valid JSON"),
        (lambda f: (f / "sft/report.json").write_text("[]"), "not a report of llmrec eval"),
        (lambda f: (f / "sft/manifest.json").write_text("[1]"), "sft/manifest.json: not the mani"),
        (lambda f: (f / "sft/predictions.parquet").write_bytes(b"no"), "not a readable parquet"),
        (lambda f: (f / "sft/predictions.parquet").unlink(), "predictions.parquet: no such file"),
        (change_lists(user_id="x"), "align-msl: row .* of its lists is not that of .*test.parquet"),
        (change_lists(target=0), "align-msl: row .* of its lists is not that of"),
        (change_prepared, "test.parquet: changed since it was prepared"),
        (other_prepared, "was evaluated on prepared data that .*prepared does not hold"),
        (lambda f: (f / "align-msl/recipe.toml").write_bytes(b"\xff"), "not a readable recipe"),
    ],
)
def test_damage_is_one_line(copied: Path, damage: Any, message: str) -> None:
    damage(copied)
    with pytest.raises(ArtefactError, match=message) as error:
        compare_runs(["runs/s1"], Asked())
    assert "\n" not in str(error.value)


def test_at_the_end_of_an_evaluation_an_older_damaged_run_is_left_out(copied: Path) -> None:
    swap_lists(copied)
    found = compare_experiment(read_recipe("tiny.toml", ["name=s1"]), "test")
    assert names(found) == NAMES[:-1]
    assert found.comparison.notes[0].startswith("left out: align-msl: its report has ")


@pytest.mark.parametrize(
    ("words", "asked", "message"),
    [
        (["runs/none"], Asked(), "runs/none: no such recipe"),
        (["quickstrat"], Asked(), "Did you mean quickstart"),
        (["quickstart", "out=nowhere"], Asked(), "nowhere/quickstart: nothing there yet"),
        (["runs"], Asked(), "runs: neither a run nor an experiment; it holds fast, s1, s2"),
        (["runs/s1"], Asked("valid"), "runs/s1: no run was evaluated on valid yet"),
        (["runs/s1/sft"], Asked("valid"), "run first: llmrec eval RECIPE --run sft --split valid"),
        (["runs/s1", "seed=3"], Asked(), "seed=3: overrides a recipe's key, and no recipe is nam"),
        (["runs/s1"], Asked(baseline="stf"), "--baseline stf: unknown, .* Did you mean sft"),
        (["runs/s1"], Asked(metric="ndcg@100"), "--metric ndcg@100: unknown, .* mean ndcg@10"),
    ],
)
def test_wrong_words_are_one_line(home: Path, words: list[str], asked: Asked, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        compare_runs(words, asked)
    assert "\n" not in str(error.value)


def test_the_command_writes_every_format(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"board.{ending}" for ending in ("md", "csv", "tex", "json", "html")]
    flags = [word for file in files for word in ("--out", str(file))]
    shown = typed(capsys, "compare", "runs/s1", "runs/s2", "--json", "--quiet", *flags)
    assert (shown.code, shown.err) == (0, "")
    assert json.loads(shown.out) == json.loads(files[3].read_text())
    assert all(file.stat().st_size > 1000 for file in files)
    plain = typed(capsys, "compare", "runs/s1", "--baseline", "baseline-pop").out
    assert "NDCG@10 against the baseline" in plain
    assert "p (Holm)" in plain
    assert "cost" in plain


def test_a_page_without_its_packages_is_the_machines_matter(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llmrec_cli.report.page", None)
    done = typed(capsys, "compare", "runs/s1", "--out", "board.html")
    assert done.code == 3
    assert "board.html: package llmrec_cli.report.page is not installed: pip install" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "board.pdf"], "expected a name that ends in .md, .csv, .tex, .json, .html"),
        (["--out", "nowhere/board.md"], "no such folder nowhere"),
        (["--external", "lists.csv"], "expected NAME=FILE"),
        (["--external", "x=gone.csv"], "no such file gone.csv"),
        (["--seen", "maybe"], "maybe"),
    ],
)
def test_wrong_flags_end_with_code_2(
    home: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = typed(capsys, "compare", "runs/s1", *words)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


@pytest.mark.starts_python("it shows that no torch is imported")
def test_comparing_imports_no_torch(home: Path) -> None:
    code = (
        "import sys\nfrom llmrec_cli.cli import app as cli, exit_codes as exits\n"
        "sys.argv = ['llmrec', 'compare', 'runs/s1', '--quiet']\n"
        "assert exits.catch_errors(cli.app) == 0\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_run_writes_its_reports_again_only_when_something_new_was_evaluated(copied: Path) -> None:
    recipe, file = read_recipe("tiny.toml", ["name=s1", "seed=1"]), copied / "comparison.json"
    file.write_text("{}")
    said: list[str] = []
    progress = Told(said)
    write_reports(recipe, run(recipe, progress=progress), progress)
    assert file.read_text() == "{}"
    os.utime(copied / "sft/report.json")
    write_reports(recipe, run(recipe, progress=progress), progress)
    assert json.loads(file.read_text())["baseline"] == "sft"


def test_a_report_that_cannot_be_written_does_not_end_the_run(copied: Path) -> None:
    (copied / "comparison.json").unlink()
    (copied / "comparison.json").mkdir()
    os.utime(copied / "comparison.json", (0, 0))  # older than the reports
    said: list[str] = []
    recipe = read_recipe("tiny.toml", ["name=s1", "seed=1"])
    found = run(recipe, progress=Told(said))
    write_reports(recipe, found, Told(said))
    assert found.comparison.baseline == "sft"
    assert said[-1].startswith("no report: runs/s1/comparison.json: cannot be written")
