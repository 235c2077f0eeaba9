"""A page per command of ``llmrec``, from the docstring and annotations of its function.

``--help`` shows the same texts.  The pages do not depend on the version of Typer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer import Typer
from typer.models import ArgumentInfo, OptionInfo

from llmrec_cli.cli.app import app

NOTE = "<!-- Written by `make docs` from the code; edit that instead. -->"
SEE = {  # what else a reader of a command's page wants
    "prepare": ("data.md", "recipe.md"),
    "validate": ("recipe.md", "troubleshooting.md"),
    "baseline": ("methods/conventional.md",),
    "sft": ("methods/lml.md", "scaling.md"),
    "align": ("methods/index.md", "scaling.md"),
    "eval": ("evaluation.md",),
    "run": ("recipe.md", "scaling.md"),
    "compare": ("evaluation.md",),
    "audit": ("data.md", "evaluation.md"),
    "recommend": ("recommend.md",),
    "export": ("recommend.md",),
    "sweep": ("sweeps.md",),
    "sample": ("data.md",),
    "download": ("data.md",),
    "schema": ("recipe.md",),
    "recipes": ("recipe.md",),
    "env": ("troubleshooting.md",),
}
KINDS = {int: "integer", float: "number", str: "text", Path: "path"}


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command."""

    names: tuple[str, ...]  # of an option, long ones first; of an argument, its metavar
    values: str  # what may be given; empty: a switch
    default: str  # empty: none, or one that says nothing
    help: str
    is_option: bool
    required: bool
    repeated: bool


@dataclass(frozen=True)
class Command:
    """One command: ``words`` are what is typed after ``llmrec``."""

    words: tuple[str, ...]
    summary: str
    text: tuple[str, ...]  # further paragraphs
    examples: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @property
    def usage(self) -> str:
        """One line in the manner of ``--help``."""
        given = [_usage_of(p) for p in self.parameters if not p.is_option]
        required = [p for p in self.parameters if p.is_option and p.required]
        needed = [f"{p.names[0]} {p.values.strip('`').upper()}" for p in required]
        return " ".join(["llmrec", *self.words, *given, *needed, "[OPTIONS]"])


def commands(typer_app: Typer = app, above: tuple[str, ...] = ()) -> Iterator[Command]:
    """Every command, those of sub-apps after those of the app itself."""
    for info in typer_app.registered_commands:
        if info.callback is not None and not info.hidden:
            name = info.name or info.callback.__name__.replace("_", "-")
            yield _command((*above, name), info.callback)
    for group in typer_app.registered_groups:
        if group.typer_instance is not None:
            group_name = (
                group.name if isinstance(group.name, str) else group.typer_instance.info.name
            )
            yield from commands(group.typer_instance, (*above, str(group_name)))


def nav_lines() -> list[str]:
    """Entries of ``mkdocs.yml``."""
    return [f"- {name}: commands/{name}.md" for name in _by_page()]


def command_pages(docs: Path) -> dict[str, str]:
    """Pages by their path under ``docs``; a sub-app's commands share one."""
    by_page = _by_page()
    pages = {f"commands/{name}.md": _page(name, found, docs) for name, found in by_page.items()}
    return {"commands/index.md": _index(by_page), **pages}


def _by_page() -> dict[str, list[Command]]:
    found: dict[str, list[Command]] = {}
    for command in commands():
        found.setdefault(command.words[0], []).append(command)
    return found


def _index(by_page: dict[str, list[Command]]) -> str:
    rows = [
        f"| [`{' '.join(command.words)}`]({name}.md{_anchor(command)}) | {_cell(command.summary)} |"
        for name, found in by_page.items()
        for command in found
    ]
    return "\n".join(
        [NOTE, "", *INDEX.strip().splitlines(), "", *_table(("command", "what it does"), rows), ""]
    )


INDEX = """
# Commands

A command reads a recipe or a finished run. It prints its result on stdout. Progress and errors go
to stderr.

- `--json` prints the result as one JSON object. `--quiet` hides progress. Every command has both.
- `--help` shows the text of the command's page.
- A recipe is a file, or the name of a shipped recipe such as `quickstart`. `KEY=VALUE` after it
  overrides one of its [keys](../recipe.md): `train.learning_rate=1e-4`.
- Colours appear only on a terminal, and never if `NO_COLOR` is set.
- `llmrec --install-completion` installs completion of commands and options in your shell.
- Exit codes and common messages: [Troubleshooting](../troubleshooting.md).
"""


def _about(group: str) -> str:
    """What a sub-app says of itself."""
    apps = {info.name: info.typer_instance for info in app.registered_groups}
    found = apps[group]
    return str(found.info.help) if found is not None else ""


def _anchor(command: Command) -> str:
    return "#" + "-".join(["llmrec", *command.words]) if len(command.words) > 1 else ""


def _page(name: str, found: list[Command], docs: Path) -> str:
    whole = len(found) == 1 and len(found[0].words) == 1
    lines = [NOTE, "", f"# llmrec {name}", ""]
    lines += [] if whole else [_about(name), ""]
    for command in found:
        lines += [] if whole else [f"## llmrec {' '.join(command.words)}", ""]
        lines += _body(command, "##" if whole else "###")
    see = [page for page in SEE.get(name, ()) if (docs / page).is_file()]
    links = [f"[{_title(docs / page)}](../{page})" for page in see]
    lines += [f"See also: {', '.join(links)}.", ""] if links else []
    return "\n".join(lines)


def _body(command: Command, heading: str) -> list[str]:
    lines = [command.summary, "", "```text", command.usage, "```", ""]
    for paragraph in command.text:
        lines += [paragraph, ""]
    for example in command.examples:
        lines += [f"{heading} Example", "", "```console", example, "```", ""]
    given = [p for p in command.parameters if not p.is_option]
    options = [p for p in command.parameters if p.is_option]
    if given:
        rows = [f"| {_names(p)} | {_said(p)} |" for p in given]
        lines += [f"{heading} Arguments", "", *_table(("argument", "meaning"), rows), ""]
    rows = [f"| {_names(p)} | {_value(p)} | {_said(p)} |" for p in options]
    return [*lines, f"{heading} Options", "", *_table(("option", "value", "meaning"), rows), ""]


def _names(parameter: Parameter) -> str:
    return "<br>".join(f"`{name}`" for name in parameter.names).replace("|", "\\|")


def _value(parameter: Parameter) -> str:
    value = parameter.values.replace("|", "\\|") or "switch"
    return f"{value}, repeatable" if parameter.repeated else value


def _said(parameter: Parameter) -> str:
    said = [_cell(parameter.help)]
    said += ["Required."] if parameter.required and parameter.is_option else []
    said += [f"Default: `{parameter.default}`."] if parameter.default else []
    return " ".join(said)


def _table(headings: tuple[str, ...], rows: list[str]) -> list[str]:
    return [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings), *rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _title(path: Path) -> str:
    first = next(line for line in path.read_text(encoding="utf-8").splitlines() if line[:2] == "# ")
    return first.removeprefix("# ")


def _usage_of(argument: Parameter) -> str:
    (name,) = argument.names
    several = argument.repeated and not name.endswith("...")
    name = f"{name}..." if several else name
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _command(words: tuple[str, ...], callback: Callable[..., Any]) -> Command:
    paragraphs = (inspect.getdoc(callback) or "").split("\n\n")
    plain = [" ".join(p.split()) for p in paragraphs]
    examples = tuple(p.removeprefix("Example: ") for p in plain if p.startswith("Example: "))
    summary, *text = [p for p in plain if not p.startswith("Example: ")]
    hints = get_type_hints(callback, include_extras=True)
    signature = inspect.signature(callback).parameters.values()
    parameters = [_parameter(p, hints[p.name]) for p in signature if p.name in hints]
    shown = tuple(p for p in parameters if p is not None)
    return Command(words, summary, tuple(text), examples, shown)


def _parameter(found: inspect.Parameter, hint: Any) -> Parameter | None:
    annotation, info = _annotated(hint)
    if not isinstance(info, ArgumentInfo | OptionInfo) or info.hidden:
        return None
    is_option = isinstance(info, OptionInfo)
    required = found.default is inspect.Parameter.empty
    kind, repeated = _one_of(annotation)
    first = (info.default,) if isinstance(info.default, str) else ()  # Option("--json", ...)
    names = tuple(sorted((*first, *(info.param_decls or ())), key=len, reverse=True))
    if not is_option:
        names = (info.metavar or found.name.upper(),)
    elif not names:
        names = (f"--{found.name.replace('_', '-')}",)
    values = f"`{info.metavar}`" if info.metavar else _values(kind, info)
    default = "" if required or found.default in (None, False, ()) else str(found.default)
    return Parameter(names, values, default, info.help or "", is_option, required, repeated)


def _annotated(hint: Any) -> tuple[Any, Any]:
    """Annotation and Typer's info of ``Annotated[..., typer.Option(...)]``, optional or not."""
    if get_origin(hint) is Annotated:
        annotation, *extras = get_args(hint)
        infos = [extra for extra in extras if isinstance(extra, ArgumentInfo | OptionInfo)]
        return annotation, infos[0] if infos else None
    return hint, None


def _one_of(annotation: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there may be several."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) is list:
        return get_args(annotation)[0], True
    return annotation, False


def _values(kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    if kind is bool:
        return ""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    least = f" ≥ {info.min}" if info.min is not None else ""
    most = f" ≤ {info.max}" if info.max is not None else ""
    return f"{KINDS.get(kind, 'text')}{least}{most}"
