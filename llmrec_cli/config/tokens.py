"""`[tokens]` of a recipe: what items are named by, and how semantic IDs are made.  No torch."""

from __future__ import annotations

import copy
import operator
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import Annotated, Any, Final, Literal, cast, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from llmrec_cli.config.data import ItemField, Section, one_or_many
from llmrec_cli.config.formats import join_words
from llmrec_cli.config.training import take_options
from llmrec_cli.methods.contract import Options
from llmrec_cli.tokens.quantizers import DEFAULT, find_quantizer, quantizer_names
from llmrec_cli.tokens.quantizers.contract import Size

BACKBONE: Final = "backbone"
"""The value of ``tokens.encoder`` that stands for the recipe's own backbone."""
ITEM_FIELDS: Final = get_args(ItemField)
MOST_LEVELS: Final = 16


@dataclass(frozen=True)
class VectorSource:
    """What the vectors of items come from."""

    texts: bool = False  # a sentence encoder reads what is known of an item
    baseline: bool = False  # the item embeddings of a conventional model


VECTORS: Final[Mapping[str, VectorSource]] = {
    "text": VectorSource(texts=True),
    "collaborative": VectorSource(baseline=True),
    "both": VectorSource(texts=True, baseline=True),
    "random": VectorSource(),
}


def _known_placeholders(pieces: tuple[str, ...]) -> tuple[str, ...]:
    for piece in pieces:
        names = list_placeholders(piece)
        unknown = [name for name in names if name not in ("title", *ITEM_FIELDS)]
        if unknown:
            known = join_words(["title", *ITEM_FIELDS]).replace('"', "")
            raise ValueError(f"{{{unknown[0]}}}: unknown placeholder, expected one of {known}")
        if not names:
            raise ValueError(f'"{piece}": expected a placeholder, such as {{title}}')
        if any(spec or turn for _, _, spec, turn in string.Formatter().parse(piece)):
            raise ValueError(f'"{piece}": expected a plain placeholder, such as {{title}}')
    return pieces


def list_placeholders(piece: str) -> list[str]:
    """The names in braces, in order; ``{{`` and ``}}`` are braces.

    Raises:
        ValueError: a brace that opens or closes nothing.
    """
    return [name for _, name, _, _ in string.Formatter().parse(piece) if name is not None]


TextPieces = Annotated[
    tuple[str, ...],
    BeforeValidator(one_or_many, json_schema_input_type=str | tuple[str, ...]),
    Field(strict=False, min_length=1),
    AfterValidator(_known_placeholders),
]


class TokensSection(Section):
    """`[tokens]`: what items are named by; absent: by their titles.

    With semantic IDs, the same table holds the options of the quantizer.
    """

    kind: Literal["title", "semantic-id"] = Field(
        description='"title": an item is its title. "semantic-id": an item is a few tokens that '
        "llmrec tokenize makes from vectors of the items"
    )
    vectors: Literal["text", "collaborative", "both", "random"] = Field(
        default="text",
        description='what an item\'s vector is. "text": what a sentence encoder makes of its text. '
        '"collaborative": its embedding in a conventional model of the recipe. "both": the two '
        'side by side. "random": a control, which knows nothing',
    )
    encoder: str = Field(
        default=BACKBONE,
        min_length=1,
        description="sentence encoder: a hub id, a local Hugging Face folder, or "
        '"backbone", the recipe\'s own pretrained model',
    )
    revision: str | None = Field(
        default=None, description="revision of the encoder on the hub, preferably a commit hash"
    )
    text: TextPieces = Field(
        default=("{title}",),
        description="the text of an item: pieces with {title} and data.fields, joined by blanks. "
        "A piece whose field the item lacks is left out",
    )
    max_tokens: int = Field(
        default=256, ge=1, description="most tokens that the encoder reads of a text"
    )
    batch: int = Field(
        default=64,
        ge=1,
        description="texts that the encoder reads together: a matter of memory and speed",
    )
    baseline: str = Field(
        default="sasrec",
        description="NAME of the [baseline.NAME] whose item embeddings are the collaborative "
        "vectors",
    )
    levels: int = Field(default=3, ge=1, le=MOST_LEVELS, description="tokens of an ID")
    codes: int = Field(default=256, ge=2, le=65536, description="values that a token may have")
    collisions: Literal["counter", "nearest", "shared"] = Field(
        default="counter",
        description='items with equal codes. "counter": every ID gets a further token, which '
        'counts them. "nearest": all but the best fitting one get the nearest free code at the '
        'last level. "shared": they have one ID, and a hit on either counts',
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="seed of the quantizer; not the recipe's seed, so that runs of several seeds "
        "have the same IDs",
    )
    quantizer: str = Field(
        default=DEFAULT,
        description="how vectors become codes: rq-kmeans, rq-vae or fsq; its options stand in the "
        "same table",
    )

    @property
    def source(self) -> VectorSource:
        """What the vectors come from."""
        return VECTORS[self.vectors]

    @property
    def size(self) -> Size:
        """Levels and codes."""
        return Size(self.levels, self.codes)

    @property
    def options(self) -> Options:
        """The quantizer's options, without the table's own keys."""
        return take_options(find_quantizer(self.quantizer).options, self)

    @property
    def fields(self) -> tuple[ItemField, ...]:
        """What the text shows of an item besides its title."""
        shown = {name for piece in self.text for name in list_placeholders(piece)}
        return tuple(cast(ItemField, name) for name in ITEM_FIELDS if name in shown)

    @model_validator(mode="after")
    def _fits(self) -> TokensSection:
        if problem := find_quantizer(self.quantizer).check(self.options, self.size):
            raise ValueError(problem)
        return self


class QuantizerTables:
    """``[tokens]`` as a discriminated union: the section's keys and the options of one quantizer.

    The union holds the quantizers that the registry knows when the recipe's model is built.
    """

    key = "quantizer"

    def kinds(self) -> dict[str, type[TokensSection]]:
        """One pydantic model per quantizer."""
        return {name: _join_quantizer(name) for name in quantizer_names()}

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        union = reduce(operator.or_, self.kinds().values())
        tagged = Annotated[union, Field(discriminator=self.key)]  # type: ignore[valid-type]  # made at run time
        return core_schema.no_info_before_validator_function(
            self._add_default, handler.generate_schema(tagged)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """A table without the key is that of the default."""
        found = handler.resolve_ref_schema(handler(schema))
        members = copy.deepcopy(found["discriminator"]["mapping"])
        refs = {name: {"$ref": ref} for name, ref in members.items()}
        others = [
            {"required": [self.key], "allOf": [ref]}
            for name, ref in refs.items()
            if name != DEFAULT
        ]
        return {"anyOf": [refs[DEFAULT], *others]}

    def _add_default(self, table: Any) -> Any:
        return {self.key: DEFAULT, **table} if isinstance(table, Mapping) else table


@cache
def _join_quantizer(name: str) -> type[TokensSection]:
    """The table's model with the options of a quantizer.

    Raises:
        TypeError: an option has the name of a key of the table.
    """
    options, own = find_quantizer(name).options, TokensSection.model_fields
    if doubled := sorted(
        {*own, "options", "size", "source", "fields"} & options.model_fields.keys()
    ):
        raise TypeError(f"{options.__name__}: {', '.join(doubled)}: a key of every [tokens]")
    bases: tuple[type[Any], ...] = (options, TokensSection)  # pydantic: the last one's keys first
    key: Any = (Literal[name], Field(default=name, description=own["quantizer"].description))
    return cast(
        type[TokensSection],
        create_model(
            f"tokens_{name}", __base__=bases, __doc__=TokensSection.__doc__, quantizer=key
        ),
    )


QUANTIZERS: Final = QuantizerTables()
