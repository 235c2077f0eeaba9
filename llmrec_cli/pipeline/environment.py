"""``llmrec env``: facts for a bug report.

They have no names of users, hosts or folders, and of the environment only a few known variables.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llmrec_cli import __version__
from llmrec_cli.runs.record import describe_source
from llmrec_cli.utils.text import redact_values
from llmrec_cli.utils.variables import LAUNCHERS, SINGLE, read_variables

NEEDED: Final = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pandas",
    "polars",
    "pyarrow",
    "scipy",
    "pydantic",
    "typer",
    "rich",
)
OPTIONAL: Final = (
    "bitsandbytes",
    "pyspark",
    "optuna",
    "matplotlib",
    "jinja2",
    "rapidfuzz",
    "flash-attn",
    "deepspeed",
    "tensorboard",
    "wandb",
    "mlflow",
    "trackio",
)
VARIABLES: Final = (  # whose values are numbers and switches
    *(name for names in LAUNCHERS.values() for name in names.values()),
    *SINGLE,
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "NO_COLOR",
)
_HARMLESS: Final = re.compile(r"[\w.,:-]{1,64}")
_CGROUP: Final = Path("/sys/fs/cgroup/memory.max")
_CPUINFO: Final = Path("/proc/cpuinfo")


def collect_environment() -> dict[str, Any]:
    """Versions, processors, memory and devices, JSON-able; None: absent, or unknown."""
    return {
        "llmrec": __version__,
        "git": describe_source(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "packages": {name: find_version(name) for name in NEEDED},
        "optional packages": {name: find_version(name) for name in OPTIONAL},
        "processor": _describe_processor(),
        "memory": _measure_memory(),
        "disk free, GB": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "torch": _describe_torch(),
        "variables": {
            n: _screen_value(v) for n in VARIABLES if (v := os.environ.get(n)) is not None
        }
        | redact_values(read_variables()),
    }


def format_facts(found: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The same in words, one fact a line."""
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from format_facts(value, f"{indent}  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, entry in enumerate(value):
                yield f"{indent}{key} {number}:"
                yield from format_facts(entry, f"{indent}  ")
        elif isinstance(value, list):
            yield f"{indent}{key}: {' '.join(map(str, value))}"
        else:
            yield f"{indent}{key}: {'-' if value is None else value}"


def find_version(package: str) -> str | None:
    """The version of an installed package; None: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _screen_value(value: str) -> str:
    """A value of the expected form; anything else is not reported."""
    return value if _HARMLESS.fullmatch(value) else "(set)"


def _describe_processor() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"model": _read_processor_model(), "cores": os.cpu_count(), "cores to use": usable}


def _read_processor_model() -> str | None:
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or None


def _measure_memory() -> dict[str, float | None]:
    """Memory of the machine, and what a container may use of it, GB."""
    limit = None
    try:
        text = _CGROUP.read_text(encoding="ascii").strip()
        limit = round(int(text) / 1e9, 1) if text.isdecimal() else None
    except OSError:
        pass
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    known = hasattr(os, "sysconf") and all(name in os.sysconf_names for name in names)
    total = os.sysconf(names[0]) * os.sysconf(names[1]) if known else None
    return {"total, GB": round(total / 1e9, 1) if total else None, "limit, GB": limit}


def _describe_torch() -> dict[str, Any]:
    """How torch was built, its threads, and the devices that it sees."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "CUDA": torch.version.cuda,
        "ROCm": torch.version.hip,
        "cuDNN": _ask_quietly(torch.backends.cudnn.version) if cuda else None,
        "driver": _read_driver() if cuda else None,
        "MPS": torch.backends.mps.is_available(),
        "GPU": [
            _describe_gpu(torch.cuda.get_device_properties(n))
            for n in range(torch.cuda.device_count())
        ]
        if cuda
        else None,
    }


def _describe_gpu(properties: Any) -> dict[str, Any]:
    return {
        "name": properties.name,
        "memory, GB": round(properties.total_memory / 1e9, 1),
        "compute capability": f"{properties.major}.{properties.minor}",
    }


def _read_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)  # nosec B603 # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.decode(errors="replace").split()), None)


def _ask_quietly(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception:  # a broken driver must not keep the rest from being reported
        return None
