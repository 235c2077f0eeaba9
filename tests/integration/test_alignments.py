"""Alignments that need more than rows, through the command line on the embedded sample."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL, llmrec, ok

pytestmark = pytest.mark.slow

SHORT = [*SMALL, "align.dmpo.train.max_steps=6", "align.dmpo.train.batch=8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which data are prepared and SFT is finished."""
    folder = tmp_path_factory.mktemp("alignments")
    ok(llmrec(folder, "prepare", "quickstart", *SHORT))
    ok(llmrec(folder, "sft", "quickstart", *SHORT))
    return folder


def align(home: Path, method: str, *words: str) -> str:
    return ok(llmrec(home, "align", "--method", method, "quickstart", *SHORT, *words))


def share(home: Path, name: str) -> None:
    """A second experiment on the same data, base and SFT result."""
    (home / "runs" / name).mkdir(exist_ok=True)
    for part in ("prepared", "base", "sft"):
        if not (home / "runs" / name / part).exists():
            (home / "runs" / name / part).symlink_to(home / "runs/quickstart" / part)


def metrics(home: Path, run: str) -> list[dict[str, Any]]:
    """What a run logged, without times."""
    lines = (home / "runs/quickstart" / run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def like_dmpo(name: str, *options: str) -> list[str]:
    """Overrides for ``[align.name]`` with DMPO's method and training."""
    train = ("max_steps=6", "batch=8", "learning_rate=1e-3", "validate_every=10")
    return [
        f"align.{name}.method=dmpo",
        *(f"align.{name}.train.{key}" for key in train),
        *(f"align.{name}.{option}" for option in options),
    ]


def test_a_preference_method_starts_at_its_reference(home: Path) -> None:
    for method, expected in (("dmpo", math.log(2)), ("sdpo", math.log(4)), ("dpo", math.log(2))):
        align(home, method)
        first = metrics(home, f"align-{method}")[0]
        assert first["loss"] == pytest.approx(expected, abs=1e-6)
        assert first["d_chosen"] == pytest.approx(0, abs=1e-5)
    assert metrics(home, "align-dmpo")[-1]["margin"] > 0


def test_the_lineage_is_recorded(home: Path) -> None:
    align(home, "heir", *like_dmpo("heir", "negatives=uniform"))
    align(
        home,
        "grandchild",
        *like_dmpo("heir"),
        "align.grandchild.method=lml",
        "align.grandchild.parent=heir",
        "align.grandchild.train.max_steps=1",
    )
    path = home / "runs/quickstart/align-grandchild/manifest.json"
    facts = json.loads(path.read_text())["facts"]
    assert facts["lineage"] == ["scratch", "sft", "align-heir"]
    assert facts["parent_weights"].keys() == {"model.safetensors"}


@pytest.mark.parametrize("negatives", ["model", "popularity"])
def test_a_precomputed_reference_gives_the_same_run(home: Path, negatives: str) -> None:
    runs = []
    for reference in ("online", "precompute"):
        name = f"{reference}-{negatives}"
        align(home, name, *like_dmpo(name, f"reference={reference}", f"negatives={negatives}"))
        runs.append(metrics(home, f"align-{name}"))
    for online, stored in zip(*runs, strict=True):
        assert online.keys() == stored.keys()
        for key, value in online.items():
            assert stored[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


def like_grpo(name: str, *options: str) -> list[str]:
    """Overrides for ``[align.name]`` with GRPO on the SFT result."""
    return [
        *(f"align.{name}.{key}" for key in ("method=grpo", "parent=sft", "k=4")),
        *like_dmpo(name, *options)[1:],
    ]


@pytest.mark.parametrize("rows", ["window", "user", "sequence"])
def test_grpo_starts_at_its_parent_and_moves(home: Path, rows: str) -> None:
    align(home, rows, *like_grpo(rows, f"train.rows={rows}", "support=vocab"))
    first, *_, last = metrics(home, f"align-{rows}")
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert last["kl"] > 0
    assert 0 <= last["without_target"] <= 1
    assert "valid_ndcg@10" in last


def test_an_interrupted_grpo_run_ends_in_the_same_weights(home: Path) -> None:
    """Draws of the policy as it was, which nothing stores."""
    words = like_grpo("drawn", "rollouts=sampled", "objective=expected", "train.save_every=1")
    words += ["align.drawn.train.schedule=constant", "align.drawn.train.warmup=0"]
    align(home, "drawn", *words)
    run = home / "runs/quickstart/align-drawn"
    expected, rows = (run / "model/model.safetensors").read_bytes(), metrics(home, "align-drawn")
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    shutil.rmtree(newest)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    done = llmrec(home, "align", "--method", "drawn", "--resume", "quickstart", *SHORT, *words)
    ok(done)
    assert "resumed from" in done.stderr
    assert (run / "model/model.safetensors").read_bytes() == expected
    assert metrics(home, "align-drawn") == rows


@pytest.mark.parametrize(
    "options",
    [
        ("refresh=2",),
        ("reference=precompute",),
        ("negatives=in-batch", "support=legal"),
        ("method=sprec", "refresh=4", "train.validate_every=0.01"),
    ],
    ids=lambda options: options[0],
)
def test_an_interrupted_alignment_ends_in_the_same_weights(
    home: Path, options: tuple[str, ...]
) -> None:
    """Stopped after 3 of 6 updates (by its length, then told to go on) against straight through."""
    name = options[0].replace("=", "-")
    words = [*like_dmpo(name, *options), f"align.{name}.train.save_every=1"]
    words += [f"align.{name}.train.schedule=constant", f"align.{name}.train.warmup=0"]
    align(home, name, *words)
    straight = home / "runs/quickstart" / f"align-{name}"
    kept = {p.name for p in (straight / "checkpoints").iterdir()}
    expected = (straight / "model" / "model.safetensors").read_bytes()
    rows = metrics(home, f"align-{name}")
    # What a kill after an earlier checkpoint leaves: later ones, the result and its seal are gone.
    for checkpoint in sorted(kept, key=lambda n: int(n.split("-")[1]))[-1:]:
        for file in sorted((straight / "checkpoints" / checkpoint).iterdir()):
            file.unlink()
        (straight / "checkpoints" / checkpoint).rmdir()
    manifest = json.loads((straight / "manifest.json").read_text())
    manifest["status"] = "running"
    (straight / "manifest.json").write_text(json.dumps(manifest))
    done = llmrec(home, "align", "--method", name, "--resume", "quickstart", *SHORT, *words)
    ok(done)
    assert "resumed from" in done.stderr
    assert (straight / "model" / "model.safetensors").read_bytes() == expected
    assert metrics(home, f"align-{name}") == rows


def like_sprec(name: str, *options: str) -> list[str]:
    """Overrides for ``[align.name]`` with SPRec, at a constant rate."""
    words = [f"align.{name}.method=sprec", *like_dmpo(name, *options)[1:]]
    return [*words, f"align.{name}.train.warmup=0", f"align.{name}.train.schedule=constant"]


def lists_of(home: Path, run: str, step: int) -> dict[str, Any]:
    """The wrong entries that a run stored before an update, by row."""
    file = home / f"runs/quickstart/align-{run}/negatives/step-{step}/lists.json"
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_the_policy_itself_ranks_again(home: Path) -> None:
    """The parent ranks the rows of all updates at once; after some updates the policy differs."""
    train = ("train.learning_rate=1e-2", "train.warmup=0", "train.schedule=constant")
    align(home, "once", *like_dmpo("once", *train))
    align(home, "again", *like_dmpo("again", "refresh=3", *train))
    align(home, "self", *like_sprec("self", "refresh=3", "pool=20", *train[:1]))
    parent = lists_of(home, "once", 0)
    for run in ("again", "self"):
        first, later = lists_of(home, run, 0), lists_of(home, run, 3)
        assert first == {row: parent[row] for row in first}
        assert later != {row: parent[row] for row in later}


def test_self_play_moves_its_reference(home: Path) -> None:
    """Every iteration begins at D = 0."""
    align(home, "moved", *like_sprec("moved", "refresh=3"))
    begins = [abs(row["d_chosen"]) < 1e-5 for row in metrics(home, "align-moved")]
    assert begins == [True, False, False, True, False, False]
    run = home / "runs/quickstart/align-moved"
    assert [path.name for path in (run / "reference").iterdir()] == ["step-3"]


def test_self_play_without_a_second_iteration_is_sdpo(home: Path) -> None:
    same = ("refresh=6", "k=2", "pool=5", "sft=0.5", "train.validate_every=0.1")
    align(home, "single", *like_sprec("single", *same))
    sdpo = [word.replace("=sprec", "=sdpo") for word in like_sprec("fixed", *same)]
    align(home, "fixed", *sdpo)
    runs = home / "runs/quickstart"
    weights = [
        (runs / f"align-{name}/model/model.safetensors").read_bytes()
        for name in ("single", "fixed")
    ]
    assert weights[0] == weights[1]
    assert metrics(home, "align-single") == metrics(home, "align-fixed")


def test_too_high_a_rate_is_warned_about(home: Path) -> None:
    words = [*like_dmpo("wild", "negatives=uniform"), "align.wild.train.learning_rate=0.3"]
    done = llmrec(
        home, "align", "--method", "wild", "quickstart", *SHORT, *words, "align.wild.beta=5.0"
    )
    ok(done)
    assert "the policy forgets the chosen answers" in done.stderr
    manifest = json.loads((home / "runs/quickstart/align-wild/manifest.json").read_text())
    assert manifest["outcome"]["warned_at"] is not None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["align.dmpo.parent=base"], "run first: llmrec sft quickstart "),
        (["align.dmpo.parent=mls"], 'parent = "mls": unknown, expected one of sft, base'),
        (["align.dmpo.parent=msl", "align.msl.parent=dmpo"], "leads back to itself"),
        (["align.dmpo.parent=msl"], "run first: llmrec align --method msl quickstart "),
        (["align.dmpo.pool=2"], "pool = 2 must be >= k = 3"),
        (["align.dmpo.refresh=5", "align.dmpo.reference=precompute"], 'reference = "online"'),
        (["align.dmpo.negatives=disliked"], "fewer than k = 3 possible negatives (disliked)"),
        (["align.dmpo.k=400", "align.dmpo.negatives=uniform"], "fewer than k = 400"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_line(home: Path, words: list[str], expected: str) -> None:
    share(home, "fresh")
    done = llmrec(home, "align", "--method", "dmpo", "quickstart", *SHORT, "name=fresh", *words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (home / "runs/fresh/align-dmpo").exists()


def test_a_parent_that_stands_on_other_data_is_refused(home: Path) -> None:
    share(home, "moved")
    path = home / "runs/moved/sft"
    path.unlink()
    shutil.copytree(home / "runs/quickstart/sft", path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["facts"]["prepared"] = "another"
    (path / "manifest.json").write_text(json.dumps(manifest))
    done = llmrec(home, "align", "--method", "lml", "quickstart", *SHORT, "name=moved")
    assert done.returncode == 2
    assert "runs/moved/sft: trained with prepared = 'another', now it is" in done.stderr
    assert not (home / "runs/moved/align-lml").exists()


def test_too_many_layers_are_refused(home: Path) -> None:
    words = ["align.ilrec.n=2", "align.ilrec.crr=false", "name=layers"]
    share(home, "layers")
    done = llmrec(home, "align", "--method", "ilrec", "quickstart", *SHORT, *words)
    assert done.returncode == 2
    assert "the backbone has 2, so at most 1 stand there" in done.stderr
    assert not (home / "runs/layers/align-ilrec").exists()
