"""The exceptions that llmrec raises on purpose, and the exit code of each.

    LlmrecError
    ├── UserError            2   something the user handed in
    │   ├── RecipeError          a recipe file or a key=value override
    │   ├── DataError            a raw file, a prepared folder, a title
    │   └── ArtefactError        a run folder, checkpoint, model or tokenizer that does not fit
    │       ├── BegunError           a run that was begun before, and can be gone on with
    │       └── MissingRunError      a run that has to be trained first
    ├── MachineError         3   disk, permission, memory, a missing device or package
    ├── NumbersError         4   NaN or infinity in a loss or gradient
    ├── ExportError          1   what was exported is another model than the run: a bug
    └── GroupError               what ended one of many processes, with its exit code

Messages are one line (a RecipeError may list several problems): they name the file, line or key,
the value, and what was expected.  Only ``cli/exit_codes.py`` catches these; everything else raises.
"""

from __future__ import annotations

from pathlib import Path


class LlmrecError(Exception):
    """Base of every error that is not a bug of ours."""

    exit_code = 1


class UserError(LlmrecError):
    """The input is wrong; the message says what was expected."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe or an override is wrong."""


class DataError(UserError):
    """A raw file or a prepared folder is wrong."""


class LineFault(DataError):
    """One line of a raw file is wrong.

    Attributes:
        brief: the message without the folder of the file.
        path: the file.
        line: 1-based number of the line; of parquet, of the row.
        index: which record of its batch the line holds; None where that is unknown.
    """

    def __init__(
        self, message: str, brief: str, path: Path, line: int, index: int | None = None
    ) -> None:
        super().__init__(message)
        self.brief, self.path, self.line, self.index = brief, path, line, index


class ArtefactError(UserError):
    """A run folder, checkpoint, model or tokenizer is damaged or does not fit its neighbours."""


class BegunError(ArtefactError):
    """A run was begun before, and nobody asked to go on with it.

    Attributes:
        reason: which one, and what else can be done.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}, or resume it")


class MissingRunError(ArtefactError):
    """A run has to be trained first.

    Args:
        reason: which one, and what is wrong with it.
        command: what to type, with RECIPE for the recipe.
    """

    def __init__(self, reason: str, command: str) -> None:
        super().__init__(f"{reason}; run first: {command}")


class MachineError(LlmrecError):
    """The machine cannot do it: disk, permission, memory, device, missing package."""

    exit_code = 3


class NumbersError(LlmrecError):
    """A loss or gradient is NaN or infinite."""

    exit_code = 4


class ExportError(LlmrecError):
    """An exported model does not give the run's scores; a bug of llmrec, or of a library."""


class GroupError(LlmrecError):
    """One process of a group failed; message and exit code are its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def belongs_to(error: BaseException, folder: Path) -> None:
    """Note which run's folder the traceback of a bug belongs in."""
    error._llmrec_folder = folder  # type: ignore[attr-defined]  # every exception takes attributes


def find_folder(error: BaseException) -> Path | None:
    """The folder that was noted, if it is there."""
    folder: Path | None = getattr(error, "_llmrec_folder", None)
    return folder if folder is not None and folder.is_dir() else None
