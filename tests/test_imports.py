"""Imports run downwards: which folder of the package may import which, and what stays out."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import llmrec_cli
from llmrec_cli.cli import app
from llmrec_cli.tasks import TASKS
from llmrec_cli.utils.imports import import_quickly

PACKAGE = Path(llmrec_cli.__file__).parent
LAYERS = (  # bottom to top; a module imports what lies below it, or beside it
    ("errors",),
    ("utils",),
    ("tensors",),
    ("methods",),
    ("models.baselines",),  # options and registry; what they build is imported when it is built
    ("tokens.quantizers",),  # as they are
    ("config.formats",),
    ("tasks",),  # declarations; what they do is imported by name
    ("config",),
    ("data",),
    ("models",),
    ("tokens",),
    ("runs",),
    ("training",),
    ("decoding",),
    ("evaluation",),
    ("pipeline",),
    ("tasks.pairs", "tasks.generate_operations", "tasks.rank_pair_operations"),
    ("tasks.rank_pair_evaluation",),
    ("report",),
    ("serving", "sweep", "sources"),
    ("cli",),
    ("__main__",),
)
# room -> what it may import of the package at any depth, besides itself and errors
ALLOWED = {
    "utils": (),
    "tensors": (),
    "methods": ("tensors",),
    "config": ("methods", "models.baselines", "tasks", "tokens.quantizers", "utils"),
    "data": ("config", "utils"),
    "models": ("config.model", "data", "methods.contract", "tensors", "utils"),
    "tokens": ("config.tokens", "data", "methods.contract", "utils"),
    "training": (
        "config.data",
        "config.training",
        "data",
        "methods.contract",
        "models",
        "runs.tracking",
        "tensors",
        "utils",
    ),
    "decoding": ("config.model", "methods.contract", "models", "tensors", "training", "data"),
}
PERIPHERY = {"report", "serving", "sweep", "sources"}  # only the command line imports it
FILES = sorted(PACKAGE.rglob("*.py"))
TASK_FILES = {name.replace("-", "_"): name for name in TASKS}  # where a task is declared


def name_of(path: Path) -> str:
    """A module's dotted name below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path) for path in FILES}


def layer_of(name: str) -> int:
    """The layer whose prefix of the name is the longest."""
    found = [
        (len(prefix), number)
        for number, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    assert found, name
    return max(found)[1]


def imported_at_once(path: Path) -> set[str]:
    """Modules of the package that importing a module imports; not what functions import later."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmrec_cli"):
            module = (node.module or "").removeprefix("llmrec_cli").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else module)
    return found - {""}


def climbs(path: Path) -> list[str]:
    """Modules of higher layers that a module imports."""
    own = layer_of(name_of(path))
    return sorted(name for name in imported_at_once(path) if layer_of(name) > own)


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p)], ids=name_of)
def test_imports_run_downwards(path: Path) -> None:
    assert climbs(path) == []


def test_an_import_that_runs_up_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    stray = tmp_path / "data" / "x.py"
    stray.write_text("from llmrec_cli.training import trainer\n")
    assert climbs(stray) == ["training.trainer"]


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, at any depth."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def strays(path: Path) -> list[str]:
    room = room_of(path)
    allowed = tuple(f"llmrec_cli.{name}" for name in (room, "errors", *ALLOWED[room]))
    inside = [name for name in imports(path) if name.startswith("llmrec_cli")]
    return [n for n in inside if not any(n == a or n.startswith(f"{a}.") for a in allowed)]


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in ALLOWED], ids=name_of)
def test_rooms_import_only_what_they_may(path: Path) -> None:
    if not name_of(path).startswith("models.baselines."):  # each builds what its registry names
        assert strays(path) == []


def test_only_the_command_line_imports_what_surrounds_the_pipeline() -> None:
    found = {
        (room_of(path), name.split(".")[1])
        for path in FILES
        if name_of(path)  # the package's own face names what it offers
        for name in imports(path)
        if name.startswith("llmrec_cli.")
    }
    importers = {room for room, name in found if name in PERIPHERY and room not in PERIPHERY}
    assert importers == {"cli"}


def test_a_stray_import_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "tensors").mkdir()
    stray = tmp_path / "tensors" / "x.py"
    stray.write_text("def f():\n    from llmrec_cli.training import trainer\n")
    assert strays(stray) == ["llmrec_cli.training.trainer"]


def test_data_and_recipes_never_import_torch() -> None:
    for path in FILES:
        declares_task = room_of(path) == "tasks" and path.stem in (*TASK_FILES, "__init__", "base")
        if declares_task or room_of(path) in (
            "data",
            "config",
            "cli",
            "errors",
            "sources",
            "utils",
        ):
            assert not [n for n in imports(path) if n.split(".")[0] in ("torch", "transformers")], (
                path
            )


def test_tensors_import_torch_and_the_standard_library_only() -> None:
    for path in (PACKAGE / "tensors").glob("*.py"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert tops <= {"torch", "llmrec_cli", *sys.stdlib_module_names}, path


def test_only_training_speaks_to_other_ranks() -> None:
    words = {"gather", "gather_for_metrics", "reduce", "is_main_process", "wait_for_everyone"}
    for path in FILES:
        calls = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        if room_of(path) not in ("training", "tensors"):  # tensors: itertools-like names are local
            assert not calls & (words - {"gather"}), path


def test_only_the_command_line_and_progress_print() -> None:
    for path in FILES:
        calls = [
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        if room_of(path) != "cli" and name_of(path) != "utils.progress":
            assert not {"print", "input", "exit", "eval", "exec"} & set(calls), path


def test_no_class_inherits_from_a_class_of_the_package_exceptions_and_settings_apart() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        ours = {n.rsplit(".", 1)[-1] for n in imports(path) if n.startswith("llmrec_cli")}
        ours |= {node.name for node in classes}
        for node in classes if room_of(path) != "errors" else []:
            bases = {b.id for b in node.bases if isinstance(b, ast.Name)}
            settings = {
                b for b in bases if b.endswith(("Section", "Options"))
            }  # pydantic, data only
            assert not bases & ours - settings, f"{path}: {node.name}"


MODELS = {"torch", "transformers"}
TABLES = {"pandas", "polars", "numpy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], MODELS | TABLES),
        (["recipes", "show", "quickstart", "--resolved"], MODELS | TABLES),
        (["validate", "quickstart"], MODELS),  # it reads the first lines of each source
    ],
)
def test_what_should_start_at_once_imports_nothing_heavy(
    words: list[str], heavy: set[str], tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom llmrec_cli.cli import app as cli, exit_codes as exits\n"
        f"sys.argv = ['llmrec', *{words!r}]\n"
        "assert exits.catch_errors(cli.app) == 0\n"
        f"heavy = {heavy!r} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


@pytest.mark.slow
def test_prepare_imports_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom llmrec_cli.cli import app as cli, exit_codes\n"
        f"sys.argv = ['llmrec', 'prepare', 'quickstart', {f'out={tmp_path}'!r}]\n"
        "assert exit_codes.catch_errors(cli.app) == 0\n"
        f"heavy = {MODELS | {'scipy', 'rapidfuzz', 'matplotlib'}!r} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_no_help_builds_the_models_of_a_recipe() -> None:
    """One child asks the whole for help, and then each command.

    A command's own help may import pydantic: typer from 0.29 on reads options with it.
    """
    code = (
        "import sys\nfrom llmrec_cli.cli import app as cli, exit_codes as exits\n"
        "for words in ('', *cli.GROUPS, *cli.COMMANDS):\n"
        "    sys.argv = ['llmrec', *words.split(), '--help']\n"
        "    assert exits.catch_errors(cli.app) == 0, words\n"
        "    assert words or 'pydantic' not in sys.modules\n"
        f"heavy = {MODELS | TABLES!r} & set(sys.modules)\n"
        "heavy |= {name for name in sys.modules if name.startswith('llmrec_cli.config')}\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == 1 + len(app.GROUPS) + len(app.COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["prepare", "validate", "sft", "align", "baseline", "eval", "run"]
)
def test_a_wrong_recipe_is_told_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom llmrec_cli.cli import app as cli, exit_codes as exits\n"
        f"sys.argv = ['llmrec', {command!r}, 'quickstart', 'train.batch=-1']\n"
        "assert exits.catch_errors(cli.app) == 2\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_collected_while_libraries_are_imported(
    collects: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards it is as it was; and what lives is set aside where torch came in, and only there.

    A second time there may be models, which must be freed.
    """
    monkeypatch.setitem(sys.modules, "torch", sys)
    set_aside = []
    monkeypatch.setattr(gc, "freeze", lambda: set_aside.append(1))
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with suppress(ImportError), import_quickly():
            assert not gc.isenabled()
            if fails:
                raise ImportError
        assert gc.isenabled() == collects
        assert not set_aside
        monkeypatch.delitem(sys.modules, "torch")
        with suppress(ImportError), import_quickly():
            sys.modules["torch"] = sys
            if fails:
                raise ImportError
        assert gc.isenabled() == collects
        assert len(set_aside) == (not fails)
    finally:
        (gc.enable if before else gc.disable)()


def asks_for_a_task(path: Path) -> list[str]:
    """Lines of a file in which a task is recognised by its name.

    That is: the name of a task that is no English word, as a text of its own; or the name of any
    task where something is compared or matched.
    """
    tree, found = ast.parse(path.read_text()), []
    compared = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.MatchValue)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in TASKS:
            if TASK_FILES.get(path.stem) == node.value:
                continue
            if "-" in str(node.value) or id(node) in compared:
                found.append(f"{path}:{node.lineno}: {node.value!r}")
    return found


def test_a_task_is_asked_for_its_name_nowhere_but_in_its_own_file() -> None:
    found = [line for path in FILES for line in asks_for_a_task(path)]
    assert [line.partition(":")[0] for line in found] == [str(PACKAGE / "config" / "data.py")]


@pytest.mark.parametrize(
    "planted",
    [
        'x = recipe.prompt.task == "rank-pair"',
        'x = "generate" != task',
        'x = task in ("generate", "other")',
        'PAIR = "rank-pair"',
        'match task:\n    case "generate":\n        pass',
    ],
)
def test_a_task_that_is_asked_for_its_name_would_be_found(planted: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(f"{planted}\n")
    assert len(asks_for_a_task(path)) == 1
