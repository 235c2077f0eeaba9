"""The page of the Python face: every name of ``llmrec_cli``, from docstrings and annotations."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_origin

from generate_commands import NOTE

import llmrec_cli
from llmrec_cli import errors
from llmrec_cli.evaluation.comparison import Contrast, Cost, Estimate, Standing
from llmrec_cli.serving.recommender import MatchedItem, Recommended

ORDER = (  # as a reader meets them: functions, then what they give
    *("load_recipe", "prepare", "train", "evaluate", "compare", "Recommender"),
    *("Recipe", "Prepared", "TrainedRun", "Comparison", "Recommendations"),
)
PARTS = {
    "Comparison": (Standing, Estimate, Contrast, Cost),
    "Recommendations": (Recommended, MatchedItem),
}
OPAQUE = ("Recommender",)  # its fields are the package's own
SECTIONS = ("Args", "Returns", "Raises", "Example")
_SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):$", re.M)
_ENTRY = re.compile(r"^(\S[^:\n]*): +(.*(?:\n[ \n].*)*)", re.M)
_FIELD = re.compile(r"^    (\w+): [^#\n]+?(?:  # (.*))?$", re.M)

OPENING = """
- A `Recommender` is described with more examples in
  [Recommend and export](recommend.md); recipes and their keys in [Recipes](recipe.md).
- Nothing is ignored without a word. `notes` of a result has every line that the command would say:
  what was left out, what is switched off, what does not compare. `load_recipe` warns
  (`UserWarning`) of keys that play no part.
- `progress=True` shows those lines on stderr while the work goes on, and how far it is;
  `progress=print`, or any other function, gets each line.
- A run is the same as the command's, file for file: stages can be mixed with `llmrec` on the
  command line.
- One process works. On several GPUs, start the program with `accelerate launch` or `torchrun`.
"""
RECIPE = """
Its tables and keys are attributes: `recipe.data.k_core`, `recipe.align["msl"].options.tau`. They
are those of [Recipes](recipe.md). `recipe.folder` is where its runs lie, `out/name`.
""".strip()
ERRORS = """
## Errors

Every exception that is raised on purpose is an `llmrec_cli.errors.LlmrecError`, and its text is the
line that the command would print. A wrong Python type (one text in place of a list) is a
`TypeError`. What the machine raises by itself (`MemoryError`, an error of CUDA) comes as it is.
"""


def python_page() -> str:
    """The whole page."""
    intro, found = parse_docstring(llmrec_cli)
    _, _, about = intro.partition("\n\n")
    example = ["## Example", "", "```python", found["Example"], "```"]
    lines = [NOTE, "", "# From Python", "", about, OPENING.rstrip(), "", *example, ""]
    for name in ORDER:
        lines += [f"## {name}", "", *describe(name, getattr(llmrec_cli, name))]
    return "\n".join([*lines, ERRORS.strip(), "", *_describe_errors()])


def parse_docstring(documented: Any) -> tuple[str, dict[str, str]]:
    """A docstring as Markdown: what stands before its sections, and each section dedented."""
    text = (inspect.getdoc(documented) or "").replace("``", "`")
    first, *rest = _SECTION.split(text)
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return first.strip(), {title: textwrap.dedent(body).strip("\n") for title, body in pairs}


def parse_entries(section: str) -> dict[str, str]:
    """``name: meaning`` of a section, a meaning on one line."""
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}


def describe(name: str, documented: Any) -> Iterator[str]:
    """The lines of one public name."""
    if not inspect.isclass(documented):
        yield from _describe_function(name, documented)
        return
    text, _ = parse_docstring(documented)
    yield from (text, "")
    if is_dataclass(documented) and name not in OPAQUE:
        yield from _describe_fields(documented)
    if not is_dataclass(documented):
        yield from (RECIPE, "")
    for own, method in list_methods(_class_of(documented)) if is_dataclass(documented) else ():
        yield from (f"### {name}.{own}", "")
        yield from _describe_function(f"{name}.{own}", method)
    for part in PARTS.get(name, ()):
        yield from (f"### Fields of {part.__name__}", "", parse_docstring(part)[0], "")
        yield from _describe_fields(part)


def list_methods(documented: type) -> Iterator[tuple[str, Callable[..., Any] | property]]:
    """The public methods and properties of a class, in order."""
    for own, value in vars(documented).items():
        function = getattr(value, "__func__", value)  # of a class method
        if not own.startswith("_") and (
            inspect.isfunction(function) or isinstance(value, property)
        ):
            yield own, function


def _describe_function(name: str, function: Callable[..., Any] | property) -> Iterator[str]:
    text, found = parse_docstring(function)
    yield from ("```python", format_signature(name, function), "```", "", text, "")
    if "Args" in found:
        entries = parse_entries(found["Args"]).items()
        rows = [f"| `{one}` | {_cell(meaning)} |" for one, meaning in entries]
        yield from ("| argument | meaning |", "|---|---|", *rows, "")
    if "Returns" in found:
        yield from (f"Returns: {' '.join(found['Returns'].split())}", "")
    if "Raises" in found:
        entries = parse_entries(found["Raises"]).items()
        rows = [f"| `{one}` | {_cell(meaning)} |" for one, meaning in entries]
        yield from ("| raises | when |", "|---|---|", *rows, "")


def _class_of(documented: Any) -> type:
    """``documented``, which is known to be a class."""
    if not isinstance(documented, type):
        raise TypeError(f"{documented!r} is no class")
    return documented


def format_signature(name: str, function: Callable[..., Any] | property) -> str:
    """A call as a reader types it, with types; a line for each parameter where one is too long."""
    if isinstance(function, property):
        getter: Any = function.fget
        return f"{name} -> {inspect.signature(getter).return_annotation}"
    signature, words = inspect.signature(function), list[str]()
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        kind = spell_type(parameter.annotation, function.__module__)
        words.append(f"{parameter.name}: {kind}{default}".replace("'", '"'))
    end = f" -> {signature.return_annotation}"
    line = f"{name}({', '.join(words)}){end}"
    if len(line) <= 88:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){end}"])


def spell_type(annotation: str, module: str) -> str:
    """An annotation with the module's own aliases spelt out (``Device``: its three words)."""

    def spell(word: re.Match[str]) -> str:
        found = getattr(sys.modules[module], word[0], None)
        alias = get_origin(found) is not None
        return re.sub(r"\w+\.(?=\w)", "", str(found)).replace("'", '"') if alias else word[0]

    return re.sub(r"\b[A-Z]\w+\b", spell, annotation)


def _describe_fields(documented: type) -> Iterator[str]:
    """Fields with their types, and the comments behind them."""
    said = dict(_FIELD.findall(inspect.getsource(documented)))
    yield from ("| field | type | |", "|---|---|---|")
    for field in fields(documented):
        kind = spell_type(str(field.type), documented.__module__).replace("|", "\\|")
        yield f"| `{field.name}` | `{kind}` | {_cell(said[field.name])} |"
    yield ""


def _describe_errors() -> Iterator[str]:
    text, _ = parse_docstring(errors)
    tree = text.partition("\n\n")[2].partition("\n\n")[0]
    yield from ("```text", textwrap.dedent(tree), "```", "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
