"""The units of a text on the command line, and ``fastrnn data encode``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import clear_errors, data_app, is_given

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastrnn.data.encoded import EncodedText
    from fastrnn.data.vocabularies import AnyVocabulary

# The options of a vocabulary, and the values of the first by what a vocabulary counts.
UNIT_OPTIONS = "unit", "vocab_size", "lower", "tokenised", "min_count"
UNIT_NAMES = {"character": "char", "word": "word", "token": "bpe"}

Unit = Annotated[
    str, typer.Option(help="char, word, or bpe (byte pairs, needs the extra [tokens]).")
]
VocabSize = Annotated[int, typer.Option(min=2, help="Different words or byte pairs to know.")]
Lower = Annotated[bool, typer.Option("--lower", help="Words in lower case.")]
Tokenised = Annotated[
    bool, typer.Option("--tokenised", help="Words are what blanks separate, as in PTB.")
]
MinCount = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Characters that occur less often become the unknown symbol. "
        "By default one in 100,000, at most 100.",
    ),
]


def new_vocabulary(text: "str | Iterable[str] | EncodedText", o: dict[str, Any]) -> "AnyVocabulary":
    from fastrnn.data.encoded import EncodedText
    from fastrnn.data.text import Vocabulary
    from fastrnn.data.vocabularies import BytePairs, WordVocabulary

    if isinstance(text, EncodedText):
        return text.vocabulary
    if o["unit"] == "char":
        return Vocabulary.of(text, min_count=o["min_count"])
    if o["unit"] == "bpe" and o["vocab_size"] < 256:
        raise ValueError(f"--vocab-size must be at least 256 for bpe, got {o['vocab_size']}")
    if o["unit"] == "bpe":
        return BytePairs.of(text, size=o["vocab_size"])
    return WordVocabulary.of(text, size=o["vocab_size"], lower=o["lower"], tokenised=o["tokenised"])


def read_units(files: list[Path]) -> "str | EncodedText":
    """The text of these files, or in the folder that ``data encode`` wrote."""
    from fastrnn.data.encoded import EncodedText
    from fastrnn.data.text import read_text

    if len(files) == 1 and Path(files[0]).is_dir():
        return EncodedText(files[0])
    return "".join(map(read_text, files))


def check_unit(context: typer.Context, o: dict[str, Any]) -> None:
    """Refuse options that another unit has."""
    for name, units in (
        ("vocab_size", ("word", "bpe")), ("lower", ("word",)), ("tokenised", ("word",)),
        ("min_count", ("char",)),
    ):  # fmt: skip
        if is_given(context, name) and o["unit"] not in units:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} goes with --unit {' or '.join(units)}")


@data_app.command("encode")
def encode(
    context: typer.Context,
    text: Annotated[
        list[Path], typer.Argument(help="UTF-8 files of any size, read one after the other.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    unit: Unit = "char",
    vocab_size: VocabSize = 10_000,
    lower: Lower = False,
    tokenised: Tokenised = False,
    min_count: MinCount = None,
    like: Annotated[
        Path | None,
        typer.Option(help="A run or a folder of `data encode` whose vocabulary to use."),
    ] = None,
) -> None:
    """Write a text as indices, for `fastrnn train lm FOLDER`: it may be larger than memory."""
    with clear_errors():
        from fastrnn.checkpoint import load_json
        from fastrnn.data.encoded import EncodedText, encode_text, read_blocks
        from fastrnn.data.vocabularies import vocabulary_of

        options = context.params
        if like is None:
            check_unit(context, options)
            vocabulary = new_vocabulary(read_blocks(text), options)
        else:
            given = [name for name in UNIT_OPTIONS if is_given(context, name)]
            if given:
                raise ValueError(f"--{given[0].replace('_', '-')} cannot be given with --like")
            vocabulary = vocabulary_of(load_json(like / "config.json"))
        encode_text(read_blocks(text), vocabulary, out)
        encoded = EncodedText(out)
        typer.echo(
            f"{encoded.characters:,} characters, {len(encoded):,} {vocabulary.unit}s, "
            f"{len(vocabulary):,} of them different: {out}"
        )
