"""``pip install .`` with a plain Python: what the wheel holds, and that it works anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llmrec_cli"
SHIPPED = {"recipes": ROOT / "recipes", "data/sample": ROOT / "data/sample"}
NO_TREE = {"PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "VIRTUAL_ENV"}


def run(*words: str | Path, cwd: Path) -> str:
    """A command far from the checkout, with the network's tools told to stay at home."""
    environment = {key: value for key, value in os.environ.items() if key not in NO_TREE}
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment | {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, from the build backend that is installed here: nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", folder, ROOT, cwd=folder)
    [built] = folder.glob("llmrec-*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel.  What it depends on is seen by path, this checkout is not."""
    home = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", "--without-pip", home / "venv", cwd=home)
    python = home / "venv/bin/python"
    pip = (sys.executable, "-m", "pip", "--quiet", "--python", python)
    run(*pip, "install", "--no-deps", wheel, cwd=home)
    [site] = (home / "venv").glob("lib/python*/site-packages")
    # Links to packages (*.pth) of a folder that a link names are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = run(python, "-c", "import llmrec_cli; print(llmrec_cli.__file__)", cwd=home)
    assert Path(where.strip()).is_relative_to(site)
    return home


def files_below(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_all_that_the_package_reads(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        held = set(archive.namelist())
    package = {f"llmrec_cli/{name}" for name in files_below(PACKAGE)}
    assert "llmrec_cli/py.typed" in package
    assert any(name.endswith(".html.j2") for name in package), "the templates of the report"
    shipped = {
        f"llmrec_cli/shipped/{place}/{name}"
        for place, folder in SHIPPED.items()
        for name in files_below(folder)
    }
    assert package | shipped <= held
    rest = {name for name in held - package - shipped if ".dist-info/" not in name}
    assert rest == set(), "tests, benchmarks and documentation are no part of it"


def test_the_commands_work_far_from_the_checkout(bare: Path) -> None:
    llmrec = bare / "venv/bin/llmrec"
    assert "prepare" in run(llmrec, "--help", cwd=bare)
    names = run(llmrec, "recipes", "ls", cwd=bare)
    assert "quickstart" in names
    run(llmrec, "validate", "quickstart", cwd=bare)
    run(llmrec, "prepare", "quickstart", "data.sample.train=50", cwd=bare)
    assert (bare / "runs/quickstart/prepared").is_dir()
