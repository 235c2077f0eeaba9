"""A job whose weights are spread over the processes, by torch's FSDP2 on CPUs.

Accelerate spreads weights on GPUs only; this does on CPUs what its FSDP plugin does there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.trainer import Trainer


class Spreading:
    """An Accelerator with ``fully_shard`` in the place of data parallelism."""

    distributed_type = DistributedType.FSDP

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def prepare(self, module: Any, optimizer: Any) -> tuple[Any, Any]:
        names = {id(p): name for name, p in module.named_parameters()}
        mesh = init_device_mesh("cpu", (self._accelerator.num_processes,))
        for part in (*module.policy.model.model.layers, module):
            fully_shard(part, mesh=mesh)
        spread = dict(module.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [spread[names[id(p)]] for p in group["params"]]
        return module, optimizer

    @contextmanager
    def no_sync(self, module: Any) -> Iterator[None]:
        module.set_requires_gradient_sync(False)
        yield
        module.set_requires_gradient_sync(True)


def spread(job: Trainer) -> Trainer:
    """The same job with its weights in pieces."""
    accelerator: Any = Spreading(job.ranks.accelerator)
    return replace(job, ranks=Ranks(accelerator))
