"""The processes of a run: distribute rows, gather results, measure time and memory."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, gather, pad_across_processes
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from llmrec_cli.utils.files import translate_os_errors

# The processes (ranks) of a run, and all collectives between them.
#
# A rank works on its share of the rows, by index. Results are summed, or collected by row number,
# each row exactly once.


T = TypeVar("T")
Arrays = Mapping[str, NDArray[Any]]
Column = tuple[Tensor, float]
Work = Callable[[Sequence[int]], Sequence[Column]]
_NOBODY = -1


@dataclass(frozen=True)
class Ranks:
    """This process among those of the same run; with one process, every method is the identity."""

    accelerator: Accelerator

    @property
    def index(self) -> int:
        """0-based number of this process."""
        return int(self.accelerator.process_index)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def has_shards(self) -> bool:
        """Whether weights are spread over the processes: all must run the same forward passes."""
        spread = (DistributedType.FSDP, DistributedType.DEEPSPEED)
        return self.accelerator.distributed_type in spread

    def share(self, rows: Sequence[T]) -> list[T]:
        """The rows that this process works on: every count-th, from its own number on."""
        return list(rows[self.index :: self.count])

    def pick_share(self, rows: Sequence[T]) -> list[T]:
        """The share of an update; the first row where it is empty, to have something to compute."""
        return self.share(rows) or list(rows[:1])

    def add(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Sums over all processes, in fp64; one collective."""
        names = sorted(sums)
        packed = torch.stack([sums[name].detach().double().to(self.device) for name in names])
        reduced = self.accelerator.reduce(packed, reduction="sum")
        return dict(zip(names, reduced.tolist(), strict=True))

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.count == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def gather_numbers(self, numbers: Sequence[int]) -> list[int]:
        """All processes' numbers (>= 0), ascending, each once."""
        padded = self._from_all(torch.tensor(list(numbers), dtype=torch.int64))
        return sorted({number for number in padded.tolist() if number != _NOBODY})

    def share_work(self, n_rows: int, work: Work) -> list[Tensor]:
        """Let each process work on its share of the rows; all get the result of all rows.

        Where weights are spread over the processes, all of them work on all rows.

        Args:
            work: gets row numbers, and returns columns (values, padding): first dimension the rows
                asked for, in order; a second one may differ in width and is padded.

        Returns:
            The values of each column for rows 0 .. n_rows - 1, on the CPU.

        Raises:
            RuntimeError: a row came back more than once, or not at all (a bug).
        """
        if self.count == 1 or self.has_shards:
            return [values.cpu() for values, _ in work(range(n_rows))]
        mine = self.share(range(n_rows))
        columns = work(mine)
        number_R = self._from_all(torch.tensor(mine, dtype=torch.int64))
        order_R = torch.argsort(number_R)[int((number_R == _NOBODY).sum()) :]
        if not torch.equal(number_R[order_R], torch.arange(n_rows)):
            raise RuntimeError(f"{n_rows} rows were shared out, {len(order_R)} came back")
        return [self._from_all(values, padding)[order_R] for values, padding in columns]

    def _from_all(self, values: Tensor, padding: float = _NOBODY) -> Tensor:
        """Every process's values one after the other, padded to the largest."""
        found = values.to(self.device)
        for dimension in range(found.ndim):
            found = pad_across_processes(found, dim=dimension, pad_index=padding)
        everything: Tensor = gather(found).cpu()
        return everything

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.accelerator.wait_for_everyone()

    def first(
        self, work: Callable[[], object], lock: Path | None = None, *, everywhere: bool = False
    ) -> None:
        """Let the first process do ``work``; the others go on when it is done.

        Args:
            lock: for long work, a file that the others wait for instead of a collective, which has
                a time limit.
            everywhere: the first process of every machine does it.
        """
        works = self.accelerator.is_local_main_process if everywhere else self.is_first
        with FileLock(lock) if lock and works and self.count > 1 else nullcontext():
            self.wait()  # what the others looked at before is as it was; and the lock is held
            if works:
                work()
        if lock and self.count > 1:
            with FileLock(lock):
                pass
        self.wait()

    def map_arrays(self, make: Callable[[], Arrays]) -> Arrays:
        """Arrays that the first process of every machine makes and all processes there map.

        With one process, what ``make`` returns.  The arrays are in the folder for temporary files,
        and are unlinked when all processes have mapped them.  A write to an array copies the page.

        Args:
            make: returns arrays that are not empty.

        Raises:
            MachineError: no room for temporary files.
        """
        if self.count == 1:
            return make()
        machine = self.index - int(self.accelerator.local_process_index)  # by its first process
        name = f"llmrec-{self.most(secrets.randbits(48))}-{machine}"  # all agree on the number
        folder = Path(tempfile.gettempdir(), name)

        def write() -> None:
            with translate_os_errors(folder):
                folder.mkdir()
                for key, array in make().items():
                    np.save(folder / f"{key}.npy", array)

        def remove() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)

        lock = folder.with_suffix(".lock")
        self.first(write, lock, everywhere=True)
        opened = partial(np.load, mmap_mode="c", allow_pickle=False)
        found = {file.stem: np.asarray(opened(file)) for file in folder.iterdir()}
        self.first(remove, everywhere=True)
        return found

    def apart(self, module: Any, *, last: bool) -> AbstractContextManager[Any]:
        """Around a backward pass: gradients stay with this process unless it is the last one."""
        if last or self.count == 1:
            return nullcontext()
        silent: AbstractContextManager[Any] = self.accelerator.no_sync(module)
        return silent


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is in pieces on several processes (FSDP): no other one loads the module."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def gather_pieces(tensor: Tensor) -> Tensor:
    """All pieces of a tensor together; where it is in pieces, every process must call this."""
    found: Any = tensor.detach()
    gathered: Tensor = found.full_tensor() if is_spread(found) else found
    return gathered


def scatter_into(target: Any, value: Tensor) -> None:
    """Copy a whole tensor into one that may be in pieces; of the same shape."""
    with torch.no_grad():
        if is_spread(target):
            from torch.distributed.tensor import distribute_tensor  # loaded by who made the pieces

            value = distribute_tensor(
                value.to(target.device, target.dtype), target.device_mesh, target.placements
            )
        target.copy_(value)


def lay_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor laid out as ``parameter`` is, where it has its shape; else as it is."""
    if value.shape != parameter.shape:
        return value  # a counter
    laid_out = torch.empty_like(parameter, dtype=value.dtype)
    scatter_into(laid_out, value)
    return laid_out


@dataclass(frozen=True)
class _Alone:
    """What ``Ranks`` asks of Accelerate, for one process."""

    device: torch.device
    process_index: int = 0
    num_processes: int = 1
    distributed_type: DistributedType = DistributedType.NO

    def wait_for_everyone(self) -> None:
        """Do nothing: there are no other processes."""


def make_single_rank(device: torch.device) -> Ranks:
    """This process by itself, on ``device``, for use as a library.

    Accelerate has one state for the whole process, which cannot change.  The program that uses this
    library may have set it up for itself, or may open runs of different precision side by side.
    """
    return Ranks(_Alone(device))


@contextmanager
def isolate_accelerate() -> Iterator[None]:
    """Set Accelerate's state of this process aside, and restore it after the block.

    Recipes of different precision or device can then follow each other in one process, and the
    calling program keeps its own state.  Within a group the processes stay connected.
    """
    in_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    states = [AcceleratorState, GradientState, *([] if in_group else [PartialState])]
    shared = [state._shared_state for state in states]  # what its _reset_state empties
    before = [dict(values) for values in shared]
    for values in shared:
        values.clear()
    try:
        yield
    finally:
        for values, earlier in zip(shared, before, strict=True):
            values.clear()
            values.update(earlier)


# Resources of a stage: its device, its processes and its peak memory.
#
# Failures here never end a run. Unknown figures are not recorded.


_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_HIGHEST = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


@dataclass
class Usage:
    """Time and memory of a block, known when it has ended."""

    seconds: float = 0.0  # of elapsed time
    peak_bytes: int = 0  # of this process: a GPU's allocated memory, else resident; 0: unknown

    def to_record(self, ranks: Ranks) -> dict[str, Any]:
        """JSON-able; the highest figures of all processes, which must all call this."""
        peak = ranks.most(self.peak_bytes)
        return {
            "seconds": round(self.seconds, 3),
            "device": device_name(ranks.device),
            "processes": ranks.count,
            "peak_bytes": peak or None,
        }


@contextmanager
def measure_usage(device: torch.device) -> Iterator[Usage]:
    """Measure time and highest memory of the block alone.

    On Linux the kernel's high-water mark is set back first (``clear_refs``, proc(5)).  Elsewhere it
    is that of the whole process so far.
    """
    _set_back(device)
    usage, begun = Usage(), time.perf_counter()
    yield usage
    usage.seconds, usage.peak_bytes = time.perf_counter() - begun, _peak(device)


def device_name(device: torch.device) -> str:
    """``cpu``, or the name of the GPU."""
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError, AssertionError):
            return str(torch.cuda.get_device_name(device))
    return str(device.type)


def _set_back(device: torch.device) -> None:
    with contextlib.suppress(OSError, RuntimeError, AssertionError):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            _RESET.write_bytes(b"5")


def _peak(device: torch.device) -> int:
    with contextlib.suppress(OSError, RuntimeError, AssertionError, ImportError):
        if device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(device))
        status = _STATUS.read_bytes().decode(errors="replace") if _STATUS.exists() else ""
        found = _HIGHEST.search(status)
        return int(found[1]) * 1024 if found else _of_the_process()
    return 0


def _of_the_process() -> int:
    """Where there is no /proc; Windows has no ``resource`` either."""
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
