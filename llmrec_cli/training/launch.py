"""Launching: start processes, stop on signals, report the process that failed."""

from __future__ import annotations

import _thread
import ctypes
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmrec_cli.errors import GroupError, MachineError, RecipeError, UserError
from llmrec_cli.utils.text import quote_word, redact
from llmrec_cli.utils.variables import REFUSED, Group, check_variables, find_group

if TYPE_CHECKING:
    from llmrec_cli.config.training import LaunchSection


# Stopping between two updates: a signal waits until the update is finished and saved.
#
# SIGINT means "interrupted", every other signal of the table "terminated". A signal that was
# ignored when this process started (``nohup``, ``trap '' HUP``) stays ignored.
#
# A SIGINT behind another signal waits for nothing. All other signals that follow the first one
# change nothing: batch systems and launchers send theirs more than once.
#
# Python runs a handler between two steps of the main thread, and a backward pass is one step. So a
# thread of its own hears of a signal at once, and says what it waits for.


_MEANINGS: Final = {
    "SIGINT": "interrupted",
    "SIGTERM": "terminated",
    "SIGHUP": "terminated (SIGHUP)",  # a terminal was closed
    "SIGUSR1": "terminated (SIGUSR1)",  # what batch systems send some time before the end
    "SIGUSR2": "terminated (SIGUSR2)",
    "SIGXCPU": "terminated (SIGXCPU: the limit on processor time)",
}
SIGNALS: Final[Mapping[int, str]] = {
    getattr(signal, name): meaning for name, meaning in _MEANINGS.items() if hasattr(signal, name)
}
"""The signals that end a command, and what its last line calls them."""


class Stopped(BaseException):
    """A signal arrived; not a KeyboardInterrupt, which typer would swallow.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for every other signal."""
        return 128 + choose_forwarded_signal(self.number)

    def __str__(self) -> str:
        return SIGNALS.get(self.number, "terminated")


def choose_forwarded_signal(number: int) -> signal.Signals:
    """What a process that was sent ``number`` sends to those that it started."""
    return signal.SIGINT if number == signal.SIGINT else signal.SIGTERM


def list_heeded_signals() -> list[int]:
    """The signals of the table that are not ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


Handler = Callable[[int, Any], object]


@contextmanager
def handle_signals(handler: Handler) -> Iterator[Mapping[int, Any]]:
    """Give the signals that are not ignored to ``handler`` inside the block.

    Yields:
        Their numbers, with what handled them before.
    """
    before = {number: signal.signal(number, handler) for number in list_heeded_signals()}
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier or signal.SIG_DFL)  # None: not set by Python


@dataclass(frozen=True)
class Wait:
    """What a signal waits for.

    Attributes:
        until: what is finished first, as a participle: "finishing update 12, then saving".
        left: where a run stands that does not wait: "at checkpoint step-8".
    """

    until: str
    left: str

    def line(self, number: int) -> str:
        """What to say when signal ``number`` arrives."""
        again = "Ctrl-C again" if number == signal.SIGINT else "Ctrl-C"
        return f"{SIGNALS[number]}: {self.until}; {again} stops now, {self.left}"


@dataclass
class Stop:
    """What has arrived, and what all processes agreed on."""

    arrived: list[int] = field(default_factory=list)
    agreed: int = 0  # the signal that ends the run on every process; 0: none
    insists: bool = False  # SIGINT came again: nothing is waited for
    obeyed: threading.Event = field(default_factory=threading.Event)  # the main thread stops

    @property
    def first_signal(self) -> int:
        """The first signal that has arrived here, 0 for none."""
        return self.arrived[0] if self.arrived else 0


AGAIN: Final = 0.5  # seconds; what follows sooner is the same Ctrl-C, delivered by two ways
_GRACE: Final = 2.0  # seconds that the main thread has to stop, before the process is ended

LastResort = Callable[[Stopped], object]
"""Ends this process from a thread, with the line and the exit code of a signal."""
_last_resort: LastResort | None = None


def set_last_resort(end: LastResort) -> None:
    """What to do where Ctrl-C came again, and the main thread does not come back from a library.

    The command line sets it.  In a program around this package nothing ends the process.
    """
    global _last_resort
    _last_resort = end


@contextmanager
def defer_signals(
    describe: Callable[[], Wait] | None = None, say: Callable[[str], object] = lambda line: None
) -> Iterator[Stop]:
    """Hold back signals inside the block; deliver the one that was agreed on after it.

    Further ones do no harm, but for SIGINT: that delivers the first one at once.  Outside the main
    thread, where Python has no signals, nothing changes.

    Args:
        describe: what a signal waits for at this moment; called in another thread.
        say: gets that line, in another thread.

    Raises:
        Stopped: the one that was agreed on is ignored by this process; another one heeded it.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def hold(number: int, frame: object) -> None:
        stop.arrived.append(number)
        if stop.insists:
            stop.obeyed.set()
            signal.signal(stop.first_signal, before[stop.first_signal] or signal.SIG_DFL)
            signal.raise_signal(stop.first_signal)

    def hear(number: int) -> None:
        if describe is not None:
            say(describe().line(number))

    with handle_signals(hold) as before, _listen(stop, before, hear):
        yield stop
    if wanted := stop.agreed or stop.first_signal:
        if wanted not in before:
            raise Stopped(wanted)
        signal.raise_signal(wanted)


@contextmanager
def _listen(stop: Stop, heeded: Collection[int], hear: Callable[[int], object]) -> Iterator[None]:
    """A thread that hears of signals the moment they arrive, whatever the main thread does.

    Args:
        hear: called with the first one.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    earlier = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        first = -1.0
        while arrived := ours.recv(1):
            number, now = arrived[0], time.monotonic()
            if number not in heeded or stop.insists:
                continue
            if first < 0:
                first = now
                with suppress(Exception):  # nobody reads it any more
                    hear(number)
            elif number == signal.SIGINT and now - first >= AGAIN:
                stop.insists = True
                _thread.interrupt_main(signal.SIGINT)
                if not stop.obeyed.wait(_GRACE) and _last_resort is not None:
                    _last_resort(Stopped(stop.first_signal or number))

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.obeyed.set()
        signal.set_wakeup_fd(earlier)
        theirs.close()
        thread.join()
        ours.close()


# This process in a process group: its rank, its failure note, and its launcher.


FAILURES = "LLMREC_FAILURES"
"""Environment variable: the folder in which ranks leave what ended them."""

LAUNCHER = "LLMREC_LAUNCHER"
"""Environment variable: the process id of the llmrec that started this one (a launcher, a sweep).

Only llmrec sets it, and nothing else makes this process the child of another one.
"""

TYPED = "LLMREC_TYPED"
"""Environment variable: the words behind ``llmrec`` that a launcher was started with, as JSON."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_RESUMABLE = ("sft", "align", "baseline")
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def is_rank() -> bool:
    """Whether this process was started as one of a group."""
    return FAILURES in os.environ or _find_group() is not None


def is_first_rank() -> bool:
    """Whether this process is the one that prints."""
    group = _find_group()
    return group is None or group.rank == 0


def _find_group() -> Group | None:
    """The group; half of a launcher's variables are refused where a group would be joined."""
    try:
        return find_group()
    except UserError:
        return None


def describe_resuming() -> str:
    """What to type after an interruption; the commands that do not train just begin again.

    Of a process that somebody else's launcher started, that launcher's own part is not known.
    """
    words = read_typed_words()
    if words[:1] and words[0] in _RESUMABLE and "--resume" not in words:
        words.insert(words.index("--") if "--" in words else len(words), "--resume")
    under = " under the same launcher" if is_rank() and LAUNCHER not in os.environ else ""
    return f"go on{under} with: {format_command(words)}"


def format_command(words: Sequence[str]) -> str:
    """A command of llmrec as it is typed: quoted for a shell, and without secrets."""
    return " ".join(quote_word(redact(word)) for word in ("llmrec", *words))


def read_typed_words() -> list[str]:
    """What was typed behind ``llmrec``; a rank has another command line than its launcher."""
    if is_rank() and TYPED in os.environ:
        return [str(word) for word in json.loads(os.environ[TYPED])]
    return sys.argv[1:]


def is_restarted() -> bool:
    """Whether torchrun or SLURM started this command again after a failure."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in _RESTARTS)


def note_failure(message: str, code: int, *, secondary: bool) -> bool:
    """Leave this rank's message to the launcher; False where there is none that would read it.

    Args:
        secondary: it is a consequence of what happened elsewhere.
    """
    folder = os.environ.get(FAILURES)
    if folder is None or not is_rank() or not Path(folder).is_dir():
        return False
    note = {"message": message, "code": code, "secondary": secondary, "time": time.time()}
    path = Path(folder) / f"rank-{os.environ.get('RANK', '0')}.json"
    path.with_suffix(".tmp").write_bytes(json.dumps(note).encode())
    path.with_suffix(".tmp").replace(path)
    return True


def leave_group() -> None:
    """Leave the process group, if this process is in one, before Python ends.

    A thread of Gloo may still hold the tensor of the last collective.  Freed while Python ends, it
    aborts the process (pytorch pull request 179291), and a finished run counts as a failed one.
    """
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def end_with_launcher(every: float = 0.25) -> None:
    """End this process when the llmrec that started it is gone: no orphan goes on writing.

    The kernel ends it where that can be asked for (Linux).  Nothing happens without ``LAUNCHER``:
    whoever else started this process, a shell or a launcher, may end before it.

    Raises:
        UserError: ``LAUNCHER`` is no process id.
    """
    known = os.environ.get(LAUNCHER)
    if known is None:
        return
    if not known.isdecimal() or int(known) == 0:
        raise UserError(f"{LAUNCHER}={known}: only llmrec sets this variable; unset it")
    parent, launcher = os.getppid(), int(known)
    if parent == launcher:
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def is_gone() -> bool:
        return os.getppid() != parent if parent == launcher else not _is_alive(launcher)

    if is_gone() or not _is_alive(launcher):  # before this rank had come here
        with suppress(OSError, AttributeError):
            sys.stderr.write(f"llmrec: ended with process {launcher} ({LAUNCHER}), which is gone\n")
        os._exit(128 + signal.SIGKILL)

    def watch() -> None:
        while not is_gone():
            time.sleep(every)
        os._exit(128 + signal.SIGKILL)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


# Starting a command on many processes, through Accelerate's launcher.
#
# The process that the user started becomes the launcher. It starts the same command once per rank,
# passes signals on, and prints the message of the rank that failed first. Under ``accelerate
# launch`` or ``torchrun`` the command is a rank itself, and starts nothing.


_WORDLESS = "process {} ended with exit code {} and said nothing"
_HUNG = "process {} gave no answer within launch.timeout = {} s and was ended; {}"
_ROUNDING = 2.0  # seconds; torch notes whole ones


def count_processes(section: LaunchSection) -> int:
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


def launch_processes(section: LaunchSection, config: Path | None) -> bool:
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
    count = count_processes(section)
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
    os.environ[TYPED] = json.dumps(sys.argv[1:])
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
            ended = GroupError(f"{stopped}; {describe_resuming()}", stopped.exit_code)
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
    """Turn the first signal into the launcher's exception, which it passes on.

    A SIGINT behind it ends the ranks.  Others are ignored.  Signals that are ignored here are
    ignored by the ranks, which inherit that.

    Yields:
        The signals that have arrived.
    """
    arrived: list[int] = []
    begun, insists = 0.0, False

    def pass_on(number: int, frame: object) -> None:
        nonlocal begun, insists
        arrived.append(number)
        now = time.monotonic()
        if len(arrived) == 1:
            begun = now
            raise exception(f"signal {number}", choose_forwarded_signal(number))
        if number == signal.SIGINT and now - begun >= AGAIN and not insists:
            insists = True
            threading.Thread(target=_insist, args=(begun,), name="insist", daemon=True).start()

    with handle_signals(pass_on):
        yield arrived


def _insist(begun: float) -> None:
    """Tell the ranks again that they are to stop, and end those that do not.

    Args:
        begun: when the first signal was passed on, by the monotonic clock: the second one must
            count as another one there.
    """
    import psutil  # of Accelerate

    time.sleep(max(begun + 2 * AGAIN - time.monotonic(), 0))
    ranks = _find_ranks()
    for rank in ranks:
        with suppress(psutil.Error):
            rank.send_signal(signal.SIGINT)
    for rank in psutil.wait_procs(ranks, 3 * _GRACE)[1]:
        with suppress(psutil.Error):
            rank.kill()


def _find_ranks() -> list[Any]:
    """The processes that work for this launcher."""
    import psutil  # of Accelerate

    found = list[Any]()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "llmrec_cli" in child.cmdline():
                found.append(child)
    return found


def _end_children(number: int, timeout: int) -> None:
    """Pass a signal on to what still runs: Accelerate leaves a single process to itself."""
    import psutil  # of Accelerate

    left = _find_ranks()
    for child in left:
        with suppress(psutil.Error):
            child.send_signal(choose_forwarded_signal(number))
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
                return MachineError(_HUNG.format(rank, timeout, describe_resuming()))
            return _explain_kill(rank, signal.Signals(-failure.exitcode))
    rank, failure = next(iter(failed.items()))
    return _find_first_note(failures, secondary=True) or MachineError(
        _WORDLESS.format(rank, failure.exitcode)
    )


def _explain_kill(rank: int, number: signal.Signals) -> MachineError:
    hint = " (out of memory?)" if number == signal.SIGKILL else ""
    return MachineError(
        f"process {rank} was ended by {number.name}{hint}; lower train.micro_batch, "
        f"train.micro_tokens or eval.batch if memory was short, and {describe_resuming()}"
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
