"""Variables of the environment: what makes a group, and what a run must not get from them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from llmrec_cli.cli import app
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.config.training import LaunchSection
from llmrec_cli.errors import UserError
from llmrec_cli.pipeline.setup import make_accelerator
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.launch import (
    LAUNCHER,
    end_with_launcher,
    is_first_rank,
    is_rank,
    launch_processes,
)
from llmrec_cli.utils.variables import (
    LAUNCHERS,
    REFUSED,
    Group,
    check_variables,
    find_group,
    read_variables,
)
from tests.training.tiny import final_state, job, metrics

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
MPI = [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
]
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No launcher's variables but a test's own; Accelerate set up anew, and again afterwards."""
    clear(monkeypatch)
    yield
    forget()


def clear(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for launcher in LAUNCHERS.values() for name in launcher.values()]
    for name in [*names, *MEETING, "LOCAL_WORLD_SIZE", LAUNCHER]:
        monkeypatch.setenv(name, "")  # so that what a test leaves there goes
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    forget()


def forget() -> None:
    """Accelerate's state, one for the whole process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def export(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SLURM,
        MEETING,
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"},
        {"LOCAL_WORLD_SIZE": "1"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},  # a shell that srun opened
    ],
    ids=str,
)
def test_what_makes_no_group(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    export(monkeypatch, variables)
    assert find_group() is None
    assert not is_rank()
    assert is_first_rank()


@pytest.mark.parametrize("names", MPI, ids=lambda names: names[0])
def test_a_whole_set_is_a_group(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    export(monkeypatch, dict(zip(names, ("3", "4", "1"), strict=True)) | MEETING)
    group = find_group()
    assert group is not None
    assert (group.rank, group.size, group.local_rank) == (3, 4, 1)
    assert not is_first_rank()
    export(monkeypatch, TORCHRUN)  # inside an MPI job
    assert check_variables() == Group("torchrun or accelerate launch", 1, 2, 1)


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"},
    ],
    ids=str,
)
def test_a_group_of_one_needs_no_address(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    export(monkeypatch, variables)
    assert is_rank()
    assert is_first_rank()
    assert launch_processes(LaunchSection(processes=2, device="cpu"), None) is False
    accelerator = make_accelerator(recipe())
    assert accelerator.num_processes == 1
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "told", "missing"),
    [
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0", "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "1"}, "RANK=1", "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2", "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (TORCHRUN, "RANK=1", "MASTER_ADDR, MASTER_PORT"),
        (TORCHRUN | {"MASTER_ADDR": "a"}, "RANK=1", "MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0"} | MEETING, "RANK=0", "LOCAL_RANK"),  # of Kubeflow
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2", "PMI_RANK, MPI_LOCALRANKID, MASTER_ADDR, MASTER_PORT"),
        ({"PMI_RANK": "0"}, "PMI_RANK=0", "PMI_SIZE, MPI_LOCALRANKID"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE=2", "MV2_COMM_WORLD_RANK"),
    ],
    ids=str,
)
def test_half_of_a_launcher_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str, missing: str
) -> None:
    export(monkeypatch, variables)
    assert not is_rank()
    assert is_first_rank()  # a command that needs no group has its say
    for refuse in (
        lambda: launch_processes(LaunchSection(), None),
        lambda: make_accelerator(recipe()),
    ):
        with pytest.raises(UserError) as error:
            refuse()
        assert error.value.exit_code == 2
        assert str(error.value).startswith(f"{told} is set, as ")
        assert missing in str(error.value)
        advice = str(error.value).partition("; unset ")[2]
        unset = advice.removesuffix(", or start llmrec through a launcher that sets all of them")
        assert set(unset.split(", ")) == set(variables) - set(MEETING)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"RANK": "2"}, "RANK=2, WORLD_SIZE=2, LOCAL_RANK=1"),
        ({"RANK": "0"}, "no process of a group"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: expected a number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1"),
    ],
)
def test_numbers_that_fit_no_group(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], told: str
) -> None:
    export(monkeypatch, TORCHRUN | MEETING | changed)
    with pytest.raises(UserError, match=told):
        check_variables()


@pytest.mark.parametrize("name", REFUSED)
def test_what_llmrec_cannot_work_under_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "false")
    assert check_variables() is None
    monkeypatch.setenv(name, "true")
    with pytest.raises(UserError, match=f"{name}=true: .*unset it"):
        make_accelerator(recipe())


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM"])
def test_a_config_file_that_asks_for_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"distributed_type: {kind}\nnum_processes: 1\nnum_machines: 1\n")
    monkeypatch.setattr("accelerate.commands.launch.launch_command", lambda parsed: None)
    with pytest.raises(UserError, match=f"config.yaml: distributed_type: {kind}: .* use MULTI_GPU"):
        launch_processes(LaunchSection(), config)


def test_the_cpu_by_the_environment_against_the_gpu_by_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(UserError, match=r"ACCELERATE_USE_CPU .*unset it"):
        make_accelerator(recipe("launch.device=cuda"))


def recipe(*words: str) -> Recipe:
    return read_recipe("quickstart", list(words or ("launch.device=cpu",)))


def run(folder: Path) -> None:
    """Two updates, with Accelerate as a command sets it up."""
    ranks = Ranks(make_accelerator(recipe()))
    job(folder, max_steps=2, ranks=ranks).train(resume=False)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in an environment that says nothing."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        clear(patch)
        run(folder)
    return folder


@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"},
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"ACCELERATE_DYNAMO_BACKEND": "EAGER"},
        {"ACCELERATE_TORCH_DEVICE": "meta"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        {"ACCELERATE_FP8_BACKEND": "TE"},
        {"ACCELERATE_SOMETHING_NEW": "1"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        SLURM,
    ],
    ids=str,
)
def test_a_run_is_that_of_its_recipe_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, straight: Path, variables: dict[str, str]
) -> None:
    export(monkeypatch, variables)
    run(tmp_path)
    assert metrics(tmp_path) == metrics(straight)
    assert final_state(tmp_path) == final_state(straight)


def test_what_still_changes_numbers_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {
        "OMP_NUM_THREADS": "3",
        "NVIDIA_TF32_OVERRIDE": "1",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    export(monkeypatch, written | {"CUDA_HOME": "/home/somebody/cuda", "EDITOR": "vi"})
    found = read_variables()
    assert {name: found[name] for name in written if written[name]}.items() <= written.items()
    assert found["CUDA_HOME"] == "(set)"
    assert "EDITOR" not in found
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP_NUM_THREADS" not in read_variables()


@pytest.mark.parametrize(
    "variables", [TORCHRUN | MEETING, {"WORLD_SIZE": "1"}, {"ACCELERATE_MIXED_PRECISION": "bf16"}]
)
@pytest.mark.usefixtures("signals_as_before")
def test_only_a_launcher_of_our_own_makes_a_child(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    export(monkeypatch, variables)
    seen: list[str] = []
    monkeypatch.setattr(app, "app", lambda: seen.extend(t.name for t in threading.enumerate()))
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0
    assert seen
    assert "launcher-watch" not in seen


def test_a_mark_that_llmrec_did_not_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER, "yes")
    with pytest.raises(UserError, match=f"{LAUNCHER}=yes: only llmrec sets this variable"):
        end_with_launcher()
