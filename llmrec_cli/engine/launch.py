"""Starting a command on many processes, through Accelerate's launcher.

The process that the user started becomes the launcher: it starts the same command once per rank,
passes signals on, and in the end tells what the rank that failed first had to say.  Under
``accelerate launch`` or ``torchrun`` the command is a rank itself and starts nothing.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec_cli.engine.group import FAILURES, LAUNCHER, how_to_go_on, is_rank
from llmrec_cli.engine.stop import Stopped, handle_signals, passed_on
from llmrec_cli.engine.variables import REFUSED, check_variables
from llmrec_cli.errors import GroupError, MachineError, RecipeError

if TYPE_CHECKING:
    from llmrec_cli.recipe.stages import LaunchSection

_WORDLESS = "process {} ended with exit code {} and said nothing"
_HUNG = "process {} gave no answer within launch.timeout = {} s and was ended; {}"
_ROUNDING = 2.0  # seconds; torch notes whole ones


def processes(section: LaunchSection) -> int:
    """How many processes this machine is to run."""
    import torch

    gpus = 0 if section.device == "cpu" else torch.cuda.device_count()
    if section.processes == "auto":
        return max(gpus, 1)
    if gpus and section.processes > gpus:
        raise RecipeError(
            f"[launch] processes = {section.processes}: {gpus} GPUs are visible; lower it, or set "
            'launch.device = "cpu"'
        )
    return section.processes


def launched(section: LaunchSection, config: Path | None) -> bool:
    """Run the command that is running on many processes, where the recipe wants that.

    Args:
        config: an ``accelerate config`` file, for FSDP, or several machines.

    Returns:
        False where this very process has to do the work: alone, or as a rank of a group.

    Raises:
        RecipeError: more processes than GPUs, or a config file that Accelerate refuses.
        GroupError: a rank failed; with its message and exit code.
        MachineError: a rank was killed, or ended without a word.
        UserError: variables of another launcher that fit no group.
    """
    check_variables()
    if is_rank():
        return False
    count = processes(section)
    if config is None and count == 1:
        return False
    if config is not None and not config.is_file():
        raise RecipeError(
            f"--accelerate-config {config}: no such file (accelerate config makes one)"
        )
    arguments = (
        ["--config_file", str(config)] if config else _make_launcher_arguments(section, count)
    )
    with tempfile.TemporaryDirectory(prefix="llmrec-") as folder:
        _run_launcher(
            [*arguments, "-m", "llmrec_cli", *_list_own_arguments()], section, Path(folder)
        )
    return True


def _make_launcher_arguments(section: LaunchSection, count: int) -> list[str]:
    threads = section.threads or max(1, (os.cpu_count() or 1) // count)
    return [
        "--multi_gpu",  # torchrun underneath; the ranks themselves choose gloo where there is none
        "--gpu_ids=all",
        f"--num_processes={count}",
        "--num_machines=1",
        "--main_process_port=0",
        "--mixed_precision=no",  # the recipe's own stands in the ranks
        "--dynamo_backend=no",
        f"--num_cpu_threads_per_process={threads}",
    ]


def _choose_import_paths() -> dict[str, str]:
    """Ranks import what this process would: nothing from the folder that they work in.

    ``python -m`` would look there first, and a ``numpy.py`` beside somebody's data would run.
    """
    root, known = Path(__file__).parents[2], os.environ.get("PYTHONPATH")
    installed = root.name in ("site-packages", "dist-packages")
    paths = ([known] if known else []) + ([] if installed else [str(root)])
    return {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


def _list_own_arguments() -> list[str]:
    """This command's arguments without ``--accelerate-config``."""
    given, kept = iter(sys.argv[1:]), []
    for argument in given:
        if argument == "--accelerate-config":
            next(given, None)
        elif not argument.startswith("--accelerate-config="):
            kept.append(argument)
    return kept


def _run_launcher(arguments: Sequence[str], section: LaunchSection, failures: Path) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parsed = launch_command_parser().parse_args(list(arguments))
    parsed.multi_gpu |= _asks_for_many_cpus(parsed.config_file)
    parsed.signals_to_handle = ""  # torchrun would put its own handlers over those below
    logging.disable(logging.CRITICAL)  # the launcher's own account of failures
    os.environ[FAILURES] = str(failures)
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ |= _choose_import_paths()
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]  # torchrun's options of another job: its nodes, its restarts
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(section.timeout)  # for a checkpoint
    with _pass_on_signals(SignalException) as arrived:
        try:
            launch_command(parsed)
        except ChildFailedError as error:
            raise _find_group_error(error.failures, failures, section.timeout) from None
        except subprocess.CalledProcessError as error:
            wordless = MachineError(_WORDLESS.format(0, error.returncode))
            raise _find_first_note(failures, secondary=False) or wordless from None
        except (ValueError, KeyError, TypeError) as error:
            raise _explain_refusal(error) from error
        except SignalException:
            _end_children(arrived[0], section.timeout)
            stopped = Stopped(arrived[0])
            ended = GroupError(f"{stopped}; {how_to_go_on()}", stopped.exit_code)
            raise _find_first_note(failures, secondary=False) or ended from None


def _asks_for_many_cpus(config: str | None) -> bool:
    """Whether a config file asks for many CPU processes; Accelerate starts one, but with MPI.

    Raises:
        RecipeError: it cannot be read, or asks for what llmrec cannot work under.
    """
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DistributedType

    if config is None:
        return False
    try:
        asked = load_config_from_file(config)
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise _explain_refusal(error) from error
    for kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        if asked.distributed_type == kind:
            name = f"ACCELERATE_USE_{kind.value}"
            raise RecipeError(
                f"--accelerate-config {config}: distributed_type: {kind.value}: {REFUSED[name]}; "
                "use MULTI_GPU or FSDP"
            )
    return bool(asked.distributed_type == DistributedType.MULTI_CPU and asked.num_processes > 1)


def _explain_refusal(error: Exception) -> RecipeError:
    reason = " ".join(str(error).split())
    return RecipeError(f"--accelerate-config: refused by Accelerate: {reason}")


@contextmanager
def _pass_on_signals(exception: Any) -> Iterator[list[int]]:
    """Turn the first signal into the launcher's exception, which it passes on; ignore others.

    Signals that are ignored here are ignored by the ranks, which inherit that.

    Yields:
        The signals that have arrived.
    """
    arrived: list[int] = []

    def first(number: int, frame: object) -> None:
        arrived.append(number)
        if len(arrived) == 1:
            raise exception(f"signal {number}", passed_on(number))

    with handle_signals(first):
        yield arrived


def _end_children(number: int, timeout: int) -> None:
    """Pass a signal on to what still runs: Accelerate leaves a single process to itself."""
    import psutil  # of Accelerate

    left = list[Any]()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "llmrec_cli" in child.cmdline():
                child.send_signal(passed_on(number))
                left.append(child)
    for child in psutil.wait_procs(left, timeout)[1]:
        with suppress(psutil.Error):
            child.kill()


def _find_group_error(
    failed: Mapping[int, Any], failures: Path, timeout: int
) -> GroupError | MachineError:
    """What ended the group: a rank's own message, one that was killed or hung, or what followed."""
    said = _find_first_note(failures, secondary=False)
    if said:
        return said
    complained = min((note["time"] for note in _read_notes(failures)), default=math.inf)
    for rank, failure in failed.items():
        if failure.exitcode < 0 and not (failures / f"rank-{rank}.json").exists():
            outlived = failure.timestamp - complained  # and was ended by the launcher, in the end
            if outlived > timeout - _ROUNDING:
                return MachineError(_HUNG.format(rank, timeout, how_to_go_on()))
            return _explain_kill(rank, signal.Signals(-failure.exitcode))
    rank, failure = next(iter(failed.items()))
    return _find_first_note(failures, secondary=True) or MachineError(
        _WORDLESS.format(rank, failure.exitcode)
    )


def _explain_kill(rank: int, number: signal.Signals) -> MachineError:
    hint = " (out of memory?)" if number == signal.SIGKILL else ""
    return MachineError(
        f"process {rank} was ended by {number.name}{hint}; lower train.micro_batch, "
        f"train.micro_tokens or eval.batch if memory was short, and {how_to_go_on()}"
    )


def _find_first_note(failures: Path, *, secondary: bool) -> GroupError | None:
    """The earliest message of a rank; ``secondary`` are those of ranks that were only told to stop,
    or left alone by the others."""
    wanted = [note for note in _read_notes(failures) if note["secondary"] == secondary]
    if not wanted:
        return None
    first = min(wanted, key=lambda note: note["time"])
    return GroupError(first["message"], first["code"])


def _read_notes(failures: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in failures.glob("rank-*.json")]
