"""The house's walls: which room may import which, and what may be said where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llmrec_cli
from llmrec_cli import cli
from llmrec_cli.tasks import TASKS

PACKAGE = Path(llmrec_cli.__file__).parent
ROOMS = ("data", "tensors", "methods", "models", "engine", "training", "report", "runs")
# room -> what it may import of the package, besides itself and errors
ALLOWED = {
    "tensors": (),
    "methods": ("tensors",),
    "data": ("recipe.data", "recipe.toml", "files"),
    "models": ("data", "methods.contract", "recipe.model", "tensors"),
    "engine": (
        "claims",
        "data",
        "files",
        "methods.contract",
        "models",
        "progress",
        "recipe.model",
        "recipe.stages",
        "recipe.track",
        "recipe.train",
        "tensors",
        "training",
    ),
    "training": (
        "claims",
        "engine",
        "files",
        "methods.contract",
        "models",
        "data",
        "progress",
        "recipe.train",
        "tensors",
    ),
    "report": ("data", "files", "models.base", "tasks"),
    "runs": (
        "__version__",
        "claims",
        "data.columns",
        "engine.log",
        "engine.ranks",  # a type
        "engine.variables",
        "files",
        "models.backbone",
        "recipe",
        "redaction",
        "stage.base",
    ),
}
# what stories are made of: may import what stories may, but of the stories only these
MATERIAL = {
    "stage": set[str](),
    "tasks": {"compare", "evaluate"},
    "comparing": {"audit", "compare"},
    "serving": set[str](),
}
# what surrounds the pipeline: only the command line imports it
PERIPHERY = {"download", "sweep", "synthetic"}
STORIES = {path.stem for path in PACKAGE.glob("*.py")} - {
    "__init__",
    "__main__",
    "claims",
    "errors",
    "exits",
    "files",
    "progress",
}
FILES = sorted(PACKAGE.rglob("*.py"))
TASK_FILES = {name.replace("-", "_"): name for name in TASKS}  # where a task is declared


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


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) in ROOMS], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_rooms_import_only_their_neighbours(path: Path) -> None:
    assert strays(path) == []


@pytest.mark.parametrize("room", MATERIAL)
def test_what_stories_are_made_of_does_not_tell_them(room: str) -> None:
    told = {
        name.split(".")[1]
        for path in (PACKAGE / room).glob("*.py")
        for name in imports(path)
        if name.startswith("llmrec_cli.")
    }
    assert told & (STORIES | {"commands"}) == MATERIAL[room]


def test_only_the_command_line_imports_what_surrounds_the_pipeline() -> None:
    found = {
        (room_of(path), name.split(".")[1])
        for path in FILES
        for name in imports(path)
        if name.startswith("llmrec_cli.")
    }
    assert {(room, name) for room, name in found if name in PERIPHERY and room != name} == {
        ("commands", name) for name in PERIPHERY
    }


def test_a_stray_import_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "tensors").mkdir()
    stray = tmp_path / "tensors" / "x.py"
    stray.write_text("def f():\n    from llmrec_cli.training import trainer\n")
    assert strays(stray) == ["llmrec_cli.training.trainer"]


def test_data_and_recipes_never_import_torch() -> None:
    for path in FILES:
        declares_task = room_of(path) == "tasks" and path.stem in (*TASK_FILES, "__init__", "base")
        if declares_task or room_of(path).startswith(
            ("data", "recipe", "runs", "cli", "commands", "errors", "prepare", "synthetic")
        ):
            assert not [n for n in imports(path) if n.split(".")[0] in ("torch", "transformers")], (
                path
            )


def test_tensors_import_torch_and_the_standard_library_only() -> None:
    for path in (PACKAGE / "tensors").glob("*.py"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert tops <= {"torch", "llmrec_cli", *sys.stdlib_module_names}, path


def test_only_the_engine_speaks_to_other_ranks() -> None:
    words = {"gather", "gather_for_metrics", "reduce", "is_main_process", "wait_for_everyone"}
    for path in FILES:
        calls = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        if room_of(path) not in ("engine", "tensors"):  # tensors: itertools-like names are local
            assert not calls & (words - {"gather"}), path


def test_only_the_command_line_and_progress_print() -> None:
    for path in FILES:
        calls = [
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        if room_of(path) not in ("commands", "progress"):
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


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], MODELS | TABLES),
        (["recipes", "show", "quickstart", "--resolved"], MODELS | TABLES),
        (["validate", "quickstart"], MODELS),  # it reads the first lines of each source
    ],
)
@pytest.mark.starts_python("it shows that no torch is imported")
def test_what_should_start_at_once_imports_nothing_heavy(words: list[str], heavy: set[str]) -> None:
    code = (
        "import sys\nfrom llmrec_cli import cli, exits\n"
        f"sys.argv = ['llmrec', *{words!r}]\n"
        "assert exits.guarded(cli.app) == 0\n"
        f"heavy = {heavy!r} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_no_help_builds_the_models_of_a_recipe() -> None:
    """One child asks the whole for help, and then each command.

    A command's own help may import pydantic: typer from 0.29 on reads options with it.
    """
    code = (
        "import sys\nfrom llmrec_cli import cli, exits\n"
        "for words in ('', *cli.GROUPS, *cli.COMMANDS):\n"
        "    sys.argv = ['llmrec', *words.split(), '--help']\n"
        "    assert exits.guarded(cli.app) == 0, words\n"
        "    assert words or 'pydantic' not in sys.modules\n"
        f"heavy = {MODELS | TABLES!r} & set(sys.modules)\n"
        "heavy |= {name for name in sys.modules if name.startswith('llmrec_cli.recipe')}\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == 1 + len(cli.GROUPS) + len(cli.COMMANDS)


@pytest.mark.parametrize(
    "command", ["prepare", "validate", "sft", "align", "baseline", "eval", "run"]
)
@pytest.mark.starts_python("it shows that no torch is imported")
def test_a_wrong_recipe_is_told_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom llmrec_cli import cli, exits\n"
        f"sys.argv = ['llmrec', {command!r}, 'quickstart', 'train.batch=-1']\n"
        "assert exits.guarded(cli.app) == 2\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


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
                found.append(f"{path}:{node.lineno}: {node.value}")
    return found


def test_a_task_is_asked_for_its_name_nowhere_but_in_its_own_file() -> None:
    found = [line for path in FILES for line in asks_for_a_task(path)]
    assert [line.partition(":")[0] for line in found] == [str(PACKAGE / "recipe" / "data.py")]


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
