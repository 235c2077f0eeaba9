"""Environment variables that affect a run: accepted, refused, hidden, or recorded.

A recipe says what a run is.  A launcher's variables say who works on it; everything else that
Accelerate would take from the environment is refused or hidden from it, and what a library below
still reads stands in the run's manifest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmrec_cli.errors import UserError

RANK, SIZE, LOCAL_RANK, LOCAL_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
FSDP: Final = "ACCELERATE_USE_FSDP"
_MEETING: Final = ("MASTER_ADDR", "MASTER_PORT")  # where processes of a group meet; alone: nothing

LAUNCHERS: Final[Mapping[str, Mapping[str, str]]] = {
    "torchrun or accelerate launch": {name: name for name in (RANK, SIZE, LOCAL_RANK)},
    "Open MPI": {
        RANK: "OMPI_COMM_WORLD_RANK",
        SIZE: "OMPI_COMM_WORLD_SIZE",
        LOCAL_RANK: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    "MPICH or Intel MPI": {RANK: "PMI_RANK", SIZE: "PMI_SIZE", LOCAL_RANK: "MPI_LOCALRANKID"},
    "MVAPICH2": {
        RANK: "MV2_COMM_WORLD_RANK",
        SIZE: "MV2_COMM_WORLD_SIZE",
        LOCAL_RANK: "MV2_COMM_WORLD_LOCAL_RANK",
    },
}
"""The variables of each launcher: rank, size, and rank on this machine.

SLURM's (``SLURM_PROCID``, ...) are none: every shell that it opens has them.
"""

SINGLE: Final = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND")
"""What ``accelerate launch`` sets of a single process; one of them alone was set by a person."""

REFUSED: Final[Mapping[str, str]] = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed would update the weights after every backward pass",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM splits models in ways that llmrec does not know",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "processes must have rows of their own",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's data parallelism was never tried",
}
"""Switches of Accelerate under which an update would not be what the recipe says, and why."""

_HONOURED: Final = re.compile(r"ACCELERATE_(USE_CPU|USE_FSDP|DEBUG_MODE|CPU_AFFINITY)")
"""What a launcher may ask of Accelerate; all its other variables are hidden from it."""

_RECORDED: Final = re.compile(
    r"(FSDP|OMP|MKL|KMP|GOMP|OPENBLAS|BLIS|ONEDNN|DNNL|ATEN|TORCH|TORCHINDUCTOR|PYTORCH|CUDA|CUBLAS"
    r"|CUBLASLT|CUDNN|NVIDIA|NCCL|GLOO|TRITON|HIP|HSA|ROCBLAS|MIOPEN|FLASH_ATTENTION|XLA)_\w+"
)
_HARMLESS: Final = re.compile(r"[\w.,:=-]{1,64}")
_TRUE: Final = ("1", "true", "yes", "on", "y", "t")


@dataclass(frozen=True)
class Group:
    """The processes that a launcher started, and this one's place among them."""

    launcher: str
    rank: int = 0
    size: int = 1
    local_rank: int = 0


def find_group() -> Group | None:
    """The group that the environment's launcher variables describe; None: there is none.

    Variables that say "one process" and no more make a group of one; MPI's make none, as
    a batch system's shell has them.

    Raises:
        UserError: half of a launcher's variables, or values that fit no group.
    """
    for launcher, names in LAUNCHERS.items():
        found = {own: os.environ[name] for own, name in names.items() if os.environ.get(name)}
        if found:
            group = _group(launcher, names, found)
            if group.size > 1 or SIZE in names.values():
                return group
    if all(os.environ.get(name) for name in SINGLE):
        return Group("accelerate launch")
    return None


def _group(launcher: str, names: Mapping[str, str], found: Mapping[str, str]) -> Group:
    first, value = next((names[own], found[own]) for own in names if own in found)
    numbers = {own: _number(names[own], text) for own, text in found.items()}
    one = numbers.get(SIZE) == 1
    needed = [*names.values(), *_MEETING]
    missing = [name for name in needed if not os.environ.get(name)]
    if missing and not one:
        unset = ", ".join(names[own] for own in names if own in found)
        raise UserError(
            f"{first}={value} is set, as {launcher} does, but not {', '.join(missing)}; unset "
            f"{unset}, or start llmrec through a launcher that sets all of them"
        )
    group = Group(launcher, numbers.get(RANK, 0), numbers[SIZE], numbers.get(LOCAL_RANK, 0))
    if not 0 <= group.local_rank <= group.rank < group.size:
        shown = ", ".join(f"{names[own]}={found[own]}" for own in names if own in found)
        raise UserError(f"{shown}: no process of a group has these numbers; unset them")
    return group


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text}: expected a number; unset it") from None


def check_variables() -> Group | None:
    """Refuse an environment under which a run would not be what its recipe says.

    Returns:
        The group to join.

    Raises:
        UserError: one line, with the variable, its value and what to do.
    """
    for name, reason in REFUSED.items():
        if os.environ.get(name, "").lower() in _TRUE:
            raise UserError(
                f"{name}={os.environ[name]}: {reason}; unset it, or use DDP or FSDP "
                "(--accelerate-config)"
            )
    return find_group()


def is_cpu_wanted() -> bool:
    """Whether ``accelerate launch --cpu`` started this process, or somebody says the same."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in _TRUE


def hide_variables(group: Group | None) -> None:
    """Leave Accelerate the variables of the group, and little else, for good.

    It looks at them when it is set up and later, for instance when it wraps a model.  A group of
    one needs nobody to meet, and is no group to Accelerate; of MPI's variables it gets torch's
    names.
    """
    accelerate = {name for name in os.environ if name.startswith("ACCELERATE_")}
    hidden = {name for name in accelerate if not _HONOURED.fullmatch(name)}
    names = {own for launcher in LAUNCHERS.values() for own in launcher.values()}
    meets = all(os.environ.get(name) for name in (RANK, *_MEETING))
    if group is None or (group.size == 1 and not meets):
        hidden |= {*names, LOCAL_SIZE, FSDP}
    else:
        hidden |= names - {RANK, SIZE, LOCAL_RANK}
        numbers = {RANK: group.rank, SIZE: group.size, LOCAL_RANK: group.local_rank}
        os.environ |= {name: str(number) for name, number in numbers.items()}
    for name in hidden:
        os.environ.pop(name, None)


def read_variables() -> dict[str, str]:
    """The variables that may change numbers or who works; no text that may tell a place or name."""
    found = {
        name: value
        for name, value in sorted(os.environ.items())
        if _HONOURED.fullmatch(name) or _RECORDED.fullmatch(name)
    }
    return {n: v if _HARMLESS.fullmatch(v) else "(set)" for n, v in found.items()}
