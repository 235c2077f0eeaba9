"""Commands on many processes, started through the real launchers, as users and clusters do."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from llmrec_cli.config.training import LaunchSection
from llmrec_cli.errors import RecipeError
from llmrec_cli.training.checkpoint import Checkpoints
from llmrec_cli.training.launch import AGAIN, count_processes, is_restarted
from tests.commands import TINY, llmrec, ok

pytestmark = pytest.mark.slow

WORDS = ["quickstart", *TINY, "train.save_every=1", "launch.timeout=60"]
TWO = "launch.processes=2"

FAILING = '''
"""Loaded by every Python process of a test: the second rank does something at its third update."""
import os, sys

if os.environ.get("RANK") == "1":
    from llmrec_cli.training.trainer import Trainer

    def broken(trainer, module, optimizer, update=Trainer.run_update):
        if trainer.state.step == 2:
            {what}
        return update(trainer, module, optimizer)

    Trainer.run_update = broken
'''
ON_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal of this session, whose end is SIGHUP
runpy.run_module("llmrec_cli", run_name="__main__", alter_sys=True)
"""
STUCK = '''
"""Loaded by every Python process of a test: its third update never comes back from a library."""
import sys

if any("llmrec" in word for word in sys.orig_argv):
    from llmrec_cli.training.trainer import Trainer

    def stuck(trainer, module, optimizer, update=Trainer.run_update):
        if trainer.state.step == 2:
            import ctypes, os
            mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
            open(f"stuck-{os.getpid()}", "w").close()
            lock(mutex), lock(mutex)
        return update(trainer, module, optimizer)

    Trainer.run_update = stuck
'''
SLOW = '''
"""Loaded by every Python process of a test: a checkpoint is written when it may be."""
import os, time

if os.environ.get("RANK") == "0":
    from llmrec_cli.training import checkpoint

    def slow(folder, fill, write=checkpoint.write_folder):
        def slowly(temporary):
            fill(temporary)
            (temporary.parent / "saving").touch()
            while not (temporary.parent / "go-on").exists():
                time.sleep(0.01)

        write(folder, slowly)

    checkpoint.write_folder = slow
'''
HEARD = '''
"""Loaded by every Python process of a test: a handler writes down what it has carried out."""
import os, signal

def put(number, handler, original=signal.signal):
    if not callable(handler):
        return original(number, handler)

    def writing(*args):
        try:
            return handler(*args)
        finally:
            with open(f"heard-{os.getpid()}", "a") as file:
                file.write(f"{args[0]} ")

    return original(number, writing)

signal.signal = put
'''


UNEQUAL = '''
"""Loaded by every Python process of a test: the second rank has no memory, the first has plenty."""
import os

if "RANK" in os.environ:
    from llmrec_cli.pipeline import memory
    from llmrec_cli.training.trainer import Trainer
    from llmrec_cli.utils.machine import Memory

    rank = int(os.environ["RANK"])
    memory.find_memory = lambda ranks, processes: Memory((1 << 40, 1000)[rank], "RAM")

    def noting(trainer, *, resume, train=Trainer.train):
        with open(f"rows-{rank}", "w") as file:
            file.write(str(trainer.loader.limits.rows))
        return train(trainer, resume=resume)

    Trainer.train = noting
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared data and a finished run of two processes."""
    folder = tmp_path_factory.mktemp("launch")
    ok(llmrec(folder, "prepare", *WORDS))
    ok(llmrec(folder, "sft", *WORDS, TWO))
    return folder


def fresh(home: Path, name: str) -> list[str]:
    """Arguments of another experiment on the same data and base."""
    (home / "runs" / name).mkdir()
    for part in ("prepared", "base"):
        shutil.copytree(home / "runs/quickstart" / part, home / "runs" / name / part)
    return [*WORDS, f"name={name}"]


HANGUP = {  # whatever these tests themselves were started by
    kind: [
        sys.executable,
        "-c",
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        f"signal.signal(signal.SIGHUP, signal.{meaning})\n"
        "os.execv(sys.argv[1], sys.argv[1:])",
    ]
    for kind, meaning in (("terminal", "SIG_DFL"), ("nohup", "SIG_IGN"))
}


def start(
    home: Path,
    *words: str,
    hook: str = "",
    ignores: bool = False,
    set_too: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start a command in its own process group, ``hook`` loaded by each of its processes.

    Args:
        ignores: under ``nohup``.
        set_too: NAME=VALUE, further variables of its environment.
    """
    environment = os.environ | dict(pair.split("=", 1) for pair in set_too)
    if hook:
        (home / "sitecustomize.py").write_text(hook)
        environment["PYTHONPATH"] = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])
    command = words if words[0] == sys.executable else (sys.executable, "-m", "llmrec_cli", *words)
    return subprocess.Popen(
        [*HANGUP["nohup" if ignores else "terminal"], *command],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks_of(name: str) -> list[int]:
    """Process ids of running ranks of an experiment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"name={name}".encode() in words and b"LOCAL_RANK=" in environment:
                found.append(int(entry.name))
    return sorted(found)


def wait_for(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def heard(home: Path, process: int) -> list[str]:
    """The signals that a handler of a process has carried out, by the hook ``HEARD``."""
    file = home / f"heard-{process}"
    return file.read_text().split() if file.is_file() else []


@pytest.fixture
def no_orphans(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for an experiment, of which no rank may be left at the end."""
    name = request.node.name.replace("test_", "").replace("[", "-").replace("]", "")
    yield name
    wait_for(lambda: not ranks_of(name), 3)


def advice(*words: str) -> str:
    """What an interrupted ``sft`` says to type."""
    return f"go on with: llmrec {shlex.join(['sft', *words])} --resume"


def losses(home: Path, name: str) -> list[float]:
    lines = (home / "runs" / name / "sft/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def outcome(home: Path, name: str, run: str = "sft") -> dict[str, object]:
    manifest = json.loads((home / "runs" / name / run / "manifest.json").read_text())
    found: dict[str, object] = manifest["outcome"]
    return found


def test_a_group_says_things_once_and_does_the_work_together(home: Path) -> None:
    done = llmrec(home, "eval", *WORDS, "--run", "sft", TWO)
    assert ok(done).count("whole catalogue") == 1
    assert outcome(home, "quickstart")["processes"] == 2
    together = json.loads((home / "runs/quickstart/sft/report.json").read_text())
    ok(llmrec(home, "eval", *WORDS, "--run", "sft", "--again"))
    alone = json.loads((home / "runs/quickstart/sft/report.json").read_text())
    assert together["keep"] == alone["keep"]
    assert together["remove"] == alone["remove"]


@pytest.mark.parametrize(
    ("hook", "code", "message"),
    [
        ("from llmrec_cli.errors import DataError; raise DataError('row 7 is odd')", 2, "row 7"),
        ("os.kill(os.getpid(), 9)", 3, "process 1 was ended by SIGKILL (out of memory?)"),
        ("raise ZeroDivisionError('oops')", 1, "a bug of llmrec (ZeroDivisionError: oops)"),
    ],
    ids=["data", "killed", "bug"],
)
def test_a_failing_rank_ends_all_with_its_one_line(
    home: Path, no_orphans: str, hook: str, code: int, message: str
) -> None:
    done = start(home, "sft", *fresh(home, no_orphans), TWO, hook=FAILING.format(what=hook))
    _, said = done.communicate(timeout=120)
    assert done.returncode == code, said
    errors = [line for line in said.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, said
    assert errors[0].startswith("llmrec sft: error: ")
    assert message in errors[0]
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all_after_a_checkpoint_and_the_run_goes_on_exactly(
    home: Path, no_orphans: str, number: signal.Signals
) -> None:
    words = fresh(home, no_orphans)
    group = start(home, "sft", *words, TWO, hook=HEARD)
    metrics = home / "runs" / no_orphans / "sft/metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 2)
    if number == signal.SIGINT:
        os.killpg(group.pid, number)  # as a terminal does
    else:
        os.kill(group.pid, number)
    wait_for(lambda: heard(home, group.pid))
    os.kill(group.pid, signal.SIGTERM)  # a second one does no harm, and the first one counts
    _, said = group.communicate(timeout=60)
    assert group.returncode == (130 if number == signal.SIGINT else 143), said
    assert said.splitlines()[-1].endswith(f"; {advice(*words, TWO)}")
    assert "Traceback" not in said
    if number == signal.SIGTERM:
        ok(llmrec(home, "sft", *words, TWO, "--resume"))
        assert losses(home, no_orphans) == losses(home, "quickstart")


def test_what_nohup_started_ends_with_no_terminal(home: Path, no_orphans: str) -> None:
    """Neither the launcher, nor torch's part of it, nor a rank hears that the terminal closes."""
    group = start(home, "sft", *fresh(home, no_orphans), TWO, ignores=True)
    metrics = home / "runs" / no_orphans / "sft/metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 2)
    for process in (group.pid, *ranks_of(no_orphans)):
        os.kill(process, signal.SIGHUP)
    _, said = group.communicate(timeout=60)
    assert group.returncode == 0, said
    assert losses(home, no_orphans) == losses(home, "quickstart")


def test_a_terminal_that_closes_leaves_a_checkpoint(home: Path, no_orphans: str) -> None:
    """SIGHUP comes from the kernel, and nobody reads the bars and the last line any more."""
    words = [*fresh(home, no_orphans), "train.save_every=1000", "train.epochs=200"]
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    alone = subprocess.Popen(
        [*HANGUP["terminal"], sys.executable, "-c", ON_TERMINAL, "sft", *words],
        cwd=home,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    folder = home / "runs" / no_orphans / "sft"
    metrics = folder / "metrics.jsonl"
    wait_for(lambda: os.read(ours, 4096) and metrics.is_file() and metrics.read_bytes())
    os.close(ours)
    assert alone.wait(timeout=60) == 143
    found = Checkpoints(folder / "checkpoints").newest()
    assert found is not None
    assert found.state["step"] == len(losses(home, no_orphans))


def test_processes_choose_the_same_passes(home: Path, no_orphans: str) -> None:
    """What fits on the process with the least memory; unequal passes would wait for each other."""
    shipped = Path(__file__).parents[2] / "recipes/quickstart.toml"
    lines = shipped.read_text().splitlines()
    open_one = [line for line in lines if not line.startswith("micro_batch")]
    (home / "open.toml").write_text("\n".join(open_one))
    _, *words = fresh(home, no_orphans)
    group = start(home, "sft", "open.toml", *words, "train.max_steps=2", TWO, hook=UNEQUAL)
    _, said = group.communicate(timeout=100)
    assert group.returncode == 0, said
    assert [(home / f"rows-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]
    manifest = json.loads((home / "runs" / no_orphans / "sft/manifest.json").read_text())
    assert manifest["chosen"] == {"micro_batch": 1}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_quiet_command_that_is_interrupted_says_nothing_on_stdout(
    processes: int, home: Path, no_orphans: str
) -> None:
    words = [*fresh(home, no_orphans), "train.epochs=200", f"launch.processes={processes}"]
    quiet = start(home, "sft", *words, "--quiet")
    metrics = home / "runs" / no_orphans / "sft/metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_bytes())
    os.kill(quiet.pid, signal.SIGINT)
    shown, said = quiet.communicate(timeout=60)
    assert quiet.returncode == 130, said
    assert shown == ""
    assert said == f"llmrec sft: error: interrupted; {advice(*words, '--quiet')}\n"


def test_one_process_of_a_config_file_is_told_to_stop(home: Path, no_orphans: str) -> None:
    """Accelerate waits for it, and would leave it to be killed with its launcher."""
    config = "distributed_type: 'NO'\nnum_processes: 1\nnum_machines: 1\nmachine_rank: 0\n"
    (home / "one.yaml").write_text(config)
    words = [*fresh(home, no_orphans), "train.save_every=1000", "train.epochs=200"]
    launcher = start(home, "sft", *words, "--accelerate-config", "one.yaml")
    folder = home / "runs" / no_orphans / "sft"
    wait_for(lambda: (folder / "metrics.jsonl").is_file() and losses(home, no_orphans))
    os.kill(launcher.pid, signal.SIGHUP)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 143, said
    told = advice(*words, "--accelerate-config", "one.yaml")
    assert said.splitlines()[-1] == f"llmrec sft: error: terminated (SIGHUP); {told}"
    assert Checkpoints(folder / "checkpoints").newest() is not None


def test_a_hanging_rank_ends_all_within_the_limit(home: Path, no_orphans: str) -> None:
    """The others wait for it for ``launch.timeout``, and it gets as long again to save."""
    words = [w for w in fresh(home, no_orphans) if not w.startswith("launch.timeout")]
    hook = FAILING.format(what="__import__('time').sleep(600)")
    group = start(home, "sft", *words, "launch.timeout=10", TWO, hook=hook)
    metrics = home / "runs" / no_orphans / "sft/metrics.jsonl"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) == 2)
    _, said = group.communicate(timeout=100)  # not the ten minutes of the one that hangs
    assert group.returncode == 3, said
    assert said.splitlines()[-1] == (
        "llmrec sft: error: process 1 gave no answer within launch.timeout = 10 s and was ended; "
        f"{advice(*words, 'launch.timeout=10', TWO)}"
    )


def test_a_second_signal_during_the_save_leaves_the_checkpoint_whole(
    home: Path, no_orphans: str
) -> None:
    words = [*fresh(home, no_orphans), "train.save_every=1000"]
    group = start(home, "sft", *words, TWO, hook=SLOW + HEARD)
    folder = home / "runs" / no_orphans / "sft"
    metrics = folder / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_text())
    os.kill(group.pid, signal.SIGTERM)
    wait_for(lambda: (folder / "checkpoints/saving").exists())
    os.kill(group.pid, signal.SIGTERM)
    wait_for(lambda: len(heard(home, group.pid)) == 2)
    (folder / "checkpoints/go-on").touch()
    assert group.wait(timeout=60) == 143  # the launcher waits for the save
    found = Checkpoints(folder / "checkpoints").newest()
    assert found is not None
    assert found.state["step"] == len(losses(home, no_orphans))
    group.communicate(timeout=60)


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_again_stops_now_at_the_last_checkpoint(
    home: Path, no_orphans: str, processes: int
) -> None:
    """The first one is answered at once, and a library that does not come back stops neither."""
    words = [*fresh(home, no_orphans), f"launch.processes={processes}"]
    for file in home.glob("stuck-*"):
        file.unlink()
    group = start(home, "sft", *words, hook=STUCK)
    assert group.stderr is not None
    wait_for(lambda: len(list(home.glob("stuck-*"))) == processes, 240)
    os.killpg(group.pid, signal.SIGINT)  # as a terminal does
    line = next(line for line in group.stderr if "interrupted" in line)
    assert line == (
        "interrupted: finishing update 3, then saving; Ctrl-C again stops now, at checkpoint "
        "step-2\n"
    )
    assert group.poll() is None
    time.sleep(AGAIN)  # two within that time are one
    os.killpg(group.pid, signal.SIGINT)
    _, said = group.communicate(timeout=60)
    assert group.returncode == 130, said
    assert said.splitlines()[-1] == f"llmrec sft: error: interrupted; {advice(*words)}"
    checkpoints = home / "runs" / no_orphans / "sft/checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-1", "step-2"]
    (home / "sitecustomize.py").unlink()
    ok(llmrec(home, *shlex.split(advice(*words).partition("llmrec ")[2])))
    if processes == 2:
        assert losses(home, no_orphans) == losses(home, "quickstart")


def test_a_signal_to_one_rank_only_ends_all(home: Path, no_orphans: str) -> None:
    group = start(home, "sft", *fresh(home, no_orphans), TWO)
    metrics = home / "runs" / no_orphans / "sft/metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 2)
    os.kill(ranks_of(no_orphans)[-1], signal.SIGTERM)
    _, said = group.communicate(timeout=60)
    assert group.returncode == 143, said
    assert (home / "runs" / no_orphans / "sft/checkpoints").is_dir()


def test_ranks_end_with_their_launcher(home: Path, no_orphans: str) -> None:
    group = start(home, "sft", *fresh(home, no_orphans), TWO)
    wait_for(lambda: len(ranks_of(no_orphans)) == 2)
    metrics = home / "runs" / no_orphans / "sft/metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_bytes())  # both are at work
    os.killpg(group.pid, signal.SIGKILL)
    group.communicate(timeout=20)


RANK = """
import os, signal
from llmrec_cli.training.launch import end_with_launcher
end_with_launcher(every=60)
print(os.getpid(), flush=True)
signal.pause()
"""
PARENT = """
import os, subprocess, sys
os.environ["LLMREC_LAUNCHER"] = str(os.getpid())
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked to end ranks on Linux")
def test_the_kernel_ends_a_rank_that_is_busy_when_its_launcher_dies() -> None:
    command = [sys.executable, "-c", PARENT, RANK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        rank = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        wait_for(lambda: not Path(f"/proc/{rank}").exists(), 5)


def test_a_rank_that_starts_after_its_launcher_died_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    environment = os.environ | {"LLMREC_LAUNCHER": str(gone.pid)}
    done = subprocess.run([sys.executable, "-c", RANK], env=environment, timeout=30, check=False)
    assert done.returncode == 137


def test_torchrun_is_joined_and_its_restart_goes_on(
    home: Path, no_orphans: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second rank dies once; torchrun starts both again, without --resume.

    (torch would hand them the first attempt's addresses, unless its stores are kept apart.)
    """
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    words = fresh(home, no_orphans)
    once = home / "died"
    hook = f"import pathlib; p = pathlib.Path({str(once)!r})\n            p.exists() or "
    hook += "(p.touch(), os.kill(os.getpid(), 9))"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node=2", "--max_restarts=1", "-m"]
    group = start(
        home,
        *torchrun,
        "llmrec_cli",
        "sft",
        *words,
        "launch.processes=5",
        hook=FAILING.format(what=hook),
    )
    _, said = group.communicate(timeout=150)
    assert group.returncode == 0, said
    assert once.exists()
    assert "resumed from" in said
    assert outcome(home, no_orphans)["processes"] == 2
    assert losses(home, no_orphans) == losses(home, "quickstart")


def test_half_of_a_launcher_is_refused_and_one_process_works(home: Path, no_orphans: str) -> None:
    words = [*fresh(home, no_orphans), "train.max_steps=1", TWO]
    half = [f"{name}=0" for name in ("RANK", "LOCAL_RANK")]
    done = start(home, "sft", *words, set_too=half)
    _, said = done.communicate(timeout=60)
    assert done.returncode == 2
    assert said == (
        "llmrec sft: error: RANK=0 is set, as torchrun or accelerate launch does, but not "
        "WORLD_SIZE, MASTER_ADDR, MASTER_PORT; unset RANK, LOCAL_RANK, or start llmrec through a "
        "launcher that sets all of them\n"
    )
    one = start(home, "sft", *words, set_too=[*half, "WORLD_SIZE=1", "OMP_NUM_THREADS=1"])
    _, said = one.communicate(timeout=60)
    assert one.returncode == 0, said
    assert outcome(home, no_orphans)["processes"] == 1
    manifest = json.loads((home / "runs" / no_orphans / "sft/manifest.json").read_text())
    assert manifest["variables"]["OMP_NUM_THREADS"] == "1"


def test_accelerate_launch_is_joined(home: Path, no_orphans: str) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]
    words = [*fresh(home, no_orphans), "train.max_steps=1", TWO]
    group = start(home, *launcher, "-m", "llmrec_cli", "sft", *words)
    _, said = group.communicate(timeout=120)
    assert group.returncode == 0, said
    assert outcome(home, no_orphans)["processes"] == 1


def test_a_config_file_that_is_not_there(home: Path) -> None:
    done = llmrec(home, "sft", *WORDS, "name=config", "--accelerate-config", "none.yaml")
    assert done.returncode == 2
    assert "--accelerate-config none.yaml: no such file" in done.stderr


@pytest.mark.parametrize("kind", ["MULTI_CPU", "MULTI_GPU"])
def test_a_config_file_says_how_many_processes(home: Path, no_orphans: str, kind: str) -> None:
    """Also on CPUs, where Accelerate's own launcher starts one process without a word."""
    config = f"distributed_type: {kind}\nnum_processes: 2\nnum_machines: 1\nmachine_rank: 0\n"
    (home / f"{kind}.yaml").write_text(config)
    words = fresh(home, no_orphans)
    ok(llmrec(home, "sft", *words, "train.max_steps=1", "--accelerate-config", f"{kind}.yaml"))
    assert outcome(home, no_orphans)["processes"] == 2


@pytest.mark.parametrize("text", ["a: [1", "distributed_type: NONE_SUCH", "hello", "[1, 2]"])
def test_a_config_file_that_accelerate_refuses_is_one_line(home: Path, text: str) -> None:
    (home / "bad.yaml").write_text(text)
    done = llmrec(home, "sft", *WORDS, "name=config", "--accelerate-config", "bad.yaml")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("llmrec sft: error: --accelerate-config: refused by Accelerate: ")


def test_only_one_llmrec_works_in_a_run(home: Path, no_orphans: str) -> None:
    words = fresh(home, no_orphans)
    first = start(home, "sft", *words, "train.epochs=200")
    wait_for(lambda: (home / "runs" / no_orphans / "sft/metrics.jsonl").is_file())
    second = llmrec(home, "sft", *words, "train.epochs=200", "--resume")
    first.kill()
    first.communicate(timeout=20)
    assert second.returncode == 2
    assert "another llmrec is working in it" in second.stderr


def test_processes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    count = "torch.cuda.device_count"
    monkeypatch.setattr(count, lambda: 0)
    assert count_processes(LaunchSection()) == 1
    assert count_processes(LaunchSection(processes=3)) == 3
    monkeypatch.setattr(count, lambda: 4)
    assert count_processes(LaunchSection()) == 4
    assert count_processes(LaunchSection(device="cpu")) == 1
    with pytest.raises(RecipeError, match="processes = 5: 4 GPUs are visible"):
        count_processes(LaunchSection(processes=5))


def test_a_restart_by_the_cluster_means_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        assert not is_restarted()
        monkeypatch.setenv(name, "0")
        assert not is_restarted()
        monkeypatch.setenv(name, "1")
        assert is_restarted()
        monkeypatch.delenv(name)
