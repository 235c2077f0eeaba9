"""What a stage takes is measured on its own, and measuring never ends a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from llmrec_cli.training import distributed
from llmrec_cli.training.distributed import Ranks

CPU = torch.device("cpu")
MIB = 1 << 20
on_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's high-water mark"
)


def taken(mebibytes: int) -> None:
    """Touch that much memory and give it back."""
    np.ones(mebibytes * MIB, np.uint8)


def peak_of(mebibytes: int) -> int:
    with distributed.measure_usage(CPU) as found:
        taken(mebibytes)
    return found.peak_bytes


@on_linux
def test_the_peak_is_that_of_the_block_alone() -> None:
    calm = peak_of(1)
    taken(300)  # by something before
    assert peak_of(1) < calm + 100 * MIB
    assert peak_of(200) > calm + 100 * MIB


def test_time_is_measured_too() -> None:
    with distributed.measure_usage(CPU) as found:
        taken(1)
    assert 0 < found.seconds < 10
    recorded = found.to_record(Ranks(Accelerator(cpu=True)))
    assert recorded["device"] == "cpu"
    assert recorded["processes"] == 1
    assert recorded["peak_bytes"] == found.peak_bytes > 10 * MIB


def test_a_machine_that_does_not_tell_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_RESET", tmp_path / "no" / "clear_refs")
    assert peak_of(1) > 10 * MIB
    monkeypatch.setattr(distributed, "_STATUS", tmp_path / "no-status")
    assert peak_of(1) > 10 * MIB  # of the whole process
    monkeypatch.setattr(distributed, "_of_the_process", lambda: (_ for _ in ()).throw(OSError))
    assert peak_of(1) == 0
    with distributed.measure_usage(CPU) as found:
        pass
    assert found.to_record(Ranks(Accelerator(cpu=True)))["peak_bytes"] is None


def test_an_error_inside_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="inside"), distributed.measure_usage(CPU):
        raise ValueError("inside")


def test_a_gpu_tells_its_allocated_memory_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch's own calls, which a machine without a GPU can only imitate."""
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 * MIB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU 80GB")
    device = torch.device("cuda", 0)
    with distributed.measure_usage(device) as found:
        assert asked == [device]
    assert found.peak_bytes == 7 * MIB
    assert distributed.device_name(device) == "A GPU 80GB"
