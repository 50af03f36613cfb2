"""``fastrnn train tagger``, ``tag`` and ``eval``."""

import importlib
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .common import (
    Backend,
    Precision,
    Shards,
    Threads,
    app,
    clear_errors,
    data_app,
    group_of,
    numbers,
    open_run,
    options_of,
    processes,
    set_threads,
    train_app,
    typer,
    workers,
)

if TYPE_CHECKING:
    from fastrnn.data.sentences import Token
    from fastrnn.models import Tagger, TaggerEnsemble

TokenColumn = Annotated[int, typer.Option(help="Column of the tokens, from 0; the last is -1.")]
TagColumn = Annotated[int, typer.Option(help="Column of the tags.")]
FeatureColumns = Annotated[
    str, typer.Option(help="Columns of further features of a token, such as 1,2.")
]
More = Annotated[
    list[Path] | None,
    typer.Option("--with", help="Another tagger's folder: probabilities are averaged. Repeatable."),
]
Vectors = Annotated[
    str | None,
    typer.Option(
        help="GloVe or word2vec, as text, .bin, .gz or .zip; .npy with words.txt; or glove."
    ),
]

# Options that may differ when a run is resumed: they do not affect the steps already done.
_FREE = ("epochs", "lr", "patience", "precision", "test", "vectors", "include_vectors")


# Options that `Tagger` calls by the same name.
_SAME = (
    "vectors", "word_dim", "unknown", "fine_tune", "char_dim", "crf", "constrain", "dropout",
    "input_dropout", "label_smoothing", "scheme", "optimizer", "lr", "schedule", "warmup_ratio",
    "epochs", "patience", "seed", "vector_seed", "precision", "char_filters", "char_width",
)  # fmt: skip


def read_tagged(path, token_column: int, tag_column: int, feature_columns: str = ""):
    """The tokens and the tags, in the scheme of the file."""
    from fastrnn.data.sentences import read_sentences

    sentences = list(
        read_sentences(
            path, token_column=token_column, tag_column=tag_column,
            feature_columns=numbers("--feature-columns", feature_columns), scheme=None,
        )
    )  # fmt: skip
    if not sentences:
        raise ValueError(f"{path} has no sentences")
    return [s.tokens for s in sentences], [s.tags for s in sentences]


@data_app.command("encode-sentences")
def encode(
    files: Annotated[list[Path], typer.Argument(help="Tagged sentences: CoNLL columns or .jsonl.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    scheme: Annotated[str, typer.Option(help="Tags of the network: BIOES or IOB2.")] = "BIOES",
    token_column: TokenColumn = 0,
    tag_column: TagColumn = -1,
    feature_columns: FeatureColumns = "",
) -> None:
    """Write sentences as indices, for `fastrnn train tagger --train FOLDER`: they may be larger
    than memory."""
    with clear_errors():
        from fastrnn.data.corpus import encode_sentences, load_sentences

        encode_sentences(
            files, out, scheme=scheme, token_column=token_column, tag_column=tag_column,
            feature_columns=numbers("--feature-columns", feature_columns),
        )  # fmt: skip
        corpus = load_sentences(out)
        typer.echo(
            f"{len(corpus.tokens.lengths):,} sentences, {len(corpus.tags):,} tokens, "
            f"{len(corpus.distinct):,} of them different: {out}"
        )


@train_app.command("tagger")
def train_tagger(
    context: typer.Context,
    train: Annotated[
        Path | None,
        typer.Option(
            help="Tagged sentences: CoNLL columns, .jsonl, or the folder of "
            "`fastrnn data encode-sentences`."
        ),
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="For choosing the best epoch by F1.")] = None,
    test: Annotated[Path | None, typer.Option(help="Scored at the end.")] = None,
    vectors: Vectors = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("run"),
    word_dim: Annotated[int, typer.Option(min=1, help="Word vector size without --vectors.")] = 50,
    unknown: Annotated[
        str,
        typer.Option(
            help="Vectors of words not in --vectors: mean (one for all), or normal (random)."
        ),
    ] = "mean",
    fine_tune: Annotated[bool, typer.Option(help="Also train the word vectors.")] = True,
    hidden: Annotated[int, typer.Option(min=1, help="BiLSTM units per direction.")] = 100,
    layers: Annotated[int, typer.Option(min=1, help="BiLSTM layers.")] = 1,
    chars: Annotated[int, typer.Option(min=0, help="Character BiLSTM units; 0: none.")] = 0,
    char_dim: Annotated[int, typer.Option(min=1, help="Size of character embeddings.")] = 25,
    char_filters: Annotated[int, typer.Option(min=0, help="Character CNN filters; 0: none.")] = 50,
    char_width: Annotated[int, typer.Option(min=1, help="Characters a filter sees; odd.")] = 5,
    crf: Annotated[bool, typer.Option(help="Use a CRF, not a softmax.")] = True,
    constrain: Annotated[bool, typer.Option(help="The CRF forbids invalid tag pairs.")] = True,
    dropout: Annotated[float, typer.Option(help="Dropout after each BiLSTM layer.")] = 0.5,
    input_dropout: Annotated[float, typer.Option(help="Dropout of the BiLSTM's input.")] = 0.25,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Weight classes by inverse frequency; no CRF.")
    ] = False,
    label_smoothing: Annotated[float, typer.Option(help="In the loss; no CRF.")] = 0.0,
    scheme: Annotated[str, typer.Option(help="Tags of the network: BIOES or IOB2.")] = "BIOES",
    optimizer: Annotated[str, typer.Option(help="adam, adamw or sgd.")] = "adam",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 3e-3,
    schedule: Annotated[str, typer.Option(help="Learning rate: constant or cosine.")] = "constant",
    warmup_ratio: Annotated[
        float, typer.Option(help="Share of the steps for warm-up, with cosine.")
    ] = 0.0,
    clip: Annotated[float, typer.Option(min=0, help="Largest gradient norm; 0: no limit.")] = 5.0,
    batch: Annotated[int, typer.Option(min=1, help="Sentences per batch.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=0, help="Tokens per batch, replaces --batch.")] = 0,
    max_len: Annotated[int, typer.Option(min=0, help="Cut longer training sentences.")] = 0,
    include_vectors: Annotated[
        bool, typer.Option("--include-vectors", help="Copy the vectors into --out at the end.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Total number of epochs.")] = 10,
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after N epochs without a better F1; 0: never.")
    ] = 0,
    token_column: TokenColumn = 0,
    tag_column: TagColumn = -1,
    feature_columns: FeatureColumns = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed for weights, dropout and batches.")] = 0,
    shards: Shards = None,
    vector_seed: Annotated[int, typer.Option(min=0, help="Seed for unknown words' vectors.")] = 0,
    precision: Precision = "float32",
    backend: Backend = "cpu",
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
) -> None:
    """Train a named-entity tagger; Ctrl-C saves, --resume continues.

    A run that is resumed keeps its options; --epochs, --patience, --lr, --precision, --test,
    --include-vectors and the place of --vectors may be changed.
    """
    with processes() as job:
        from tqdm import tqdm

        from fastrnn.data.corpus import load_sentences
        from fastrnn.metrics import report
        from fastrnn.models import Tagger
        from fastrnn.models.fitted import BEFORE

        set_threads(threads)
        # What runs of older versions did, which had no such options.
        older = {k: v for k, v in BEFORE.items() if k in _SAME} | {"feature_columns": ""}
        o = options = options_of(context, out if resume else None, older if resume else None)
        if o["train"] is None:
            raise ValueError("train tagger needs --train (or --resume)")
        for name in ("train", "dev", "test"):
            options[name] = options[name] and str(options[name])
        columns = o["token_column"], o["tag_column"], o["feature_columns"]
        if Path(o["train"]).is_dir():
            corpus = load_sentences(o["train"])
            known: tuple = (corpus.checksum,)
            train_on: tuple = (corpus,)
            count, tokens = len(corpus.tokens.lengths), len(corpus.tags)
        else:
            train_on = known = read_tagged(o["train"], *columns)
            count, tokens = len(train_on[0]), sum(map(len, train_on[0]))
        held_out = None if o["dev"] is None else read_tagged(o["dev"], *columns)
        last = None if o["test"] is None else read_tagged(o["test"], *columns)
        # Compared when the run is resumed: files of the same names could hold other sentences.
        options["checksum"] = zlib.crc32(repr((*known, held_out)).encode("utf-8", "surrogatepass"))
        model = Tagger(
            hidden_size=o["hidden"], num_layers=o["layers"], char_hidden=o["chars"],
            max_norm=o["clip"] or None, batch_size=o["batch"], max_tokens=o["max_tokens"] or None,
            max_len=o["max_len"] or None, class_weight="balanced" if o["balanced"] else None,
            backend=backend, **{k: o[k] for k in _SAME},
        )  # fmt: skip
        # A cosine schedule depends on the number of epochs.
        fixed = () if o["schedule"] == "constant" else ("epochs",)
        free = tuple(name for name in _FREE if name not in fixed)
        group = group_of(job, options, resume)
        say = typer.echo if group.lead else lambda _: None
        group.share(lambda: open_run(out, resume, options, free))
        if o["include_vectors"] and not model._vectors().can_be_saved:
            raise ValueError(f"--include-vectors cannot copy the n-grams of {o['vectors']}")
        say(f"{count:,} sentences, {tokens:,} tokens, {workers(group)}")
        model.fit(*train_on, dev=held_out, run=out, resume=resume, report=tqdm.write, group=group)
        if o["include_vectors"]:
            group.share(lambda: model.fitted_.save_config(out, include_vectors=True))
        trainer = model.trainer_
        if trainer.stopped == "interrupted":
            say(f"stopped at step {trainer.step}; saved in {trainer.checkpoint}")
            raise typer.Exit(130)
        best = "" if trainer.best is None else f", best F1 {trainer.best:.2f} on {o['dev']}"
        say(f"{trainer.step} steps, {trainer.rate:,.0f} tokens per second{best}")
        if last is not None:
            say(f"\n{o['test']}\n{report(model.evaluate(*last, group=group))}\n")
        say(f"model and history: {out}")


@app.command()
def tag(
    run: Annotated[Path, typer.Argument(help="A tagger's folder.")],
    file: Annotated[str, typer.Argument(help="File to tag; - for standard input.")] = "-",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="columns (CoNLL), jsonl, lines (a sentence each, tokens separated by blanks) or "
            "text (a text each, not yet tokenised). "
            "By default from the suffix: lines for .txt, no suffix and standard input.",
        ),
    ] = "",
    output: Annotated[
        str,
        typer.Option(help="columns (a token, a tab, its tag) or jsonl (entities and confidences)."),
    ] = "columns",
    tokenizer: Annotated[
        str,
        typer.Option(help="For text: a Python function such as nltk:wordpunct_tokenize."),
    ] = "",
    more: More = None,
    token_column: TokenColumn = 0,
    feature_columns: FeatureColumns = "",
    vectors: Vectors = None,
    precision: Precision | None = None,
    at_once: Annotated[
        int, typer.Option(min=1, help="Sentences to read before tagging them; 1 on a terminal.")
    ] = 1024,
    backend: Backend = "cpu",
    threads: Threads = None,
) -> None:
    """Tag sentences or texts.

    With --output columns: a token, a tab and its tag per line, an empty line after a sentence. With
    jsonl: an object per sentence with its tokens and tags (its text, if --format is text) and its
    entities: their type, their start and end in tokens (in characters of the text) and confidence.
    """
    with processes() as group:
        set_threads(threads)
        if output not in ("columns", "jsonl"):
            raise ValueError(f"--output must be columns or jsonl; got {output!r}")
        if tokenizer and form != "text":
            raise ValueError("--tokenizer goes with --format text")
        tokenize = _function(tokenizer) if tokenizer else None
        model = _load([run, *(more or [])], vectors, precision, backend)
        if file == "-" and sys.stdin.isatty():
            at_once = 1
        sentences = _untagged(
            file, form, token_column, numbers("--feature-columns", feature_columns)
        )
        write = _columns if output == "columns" else _json
        texts = group.stream(
            lambda: list(islice(sentences, at_once)),
            lambda part: "".join(write(model, part, form == "text", tokenize)),
        )
        for text in texts:
            sys.stdout.write(text)
            sys.stdout.flush()


def _load(runs: list[Path], vectors, precision, backend) -> "Tagger | TaggerEnsemble":
    """A tagger, or several as one."""
    from fastrnn.models import Tagger, TaggerEnsemble

    if len(runs) == 1:
        return Tagger.load(runs[0], vectors=vectors, precision=precision, backend=backend)
    return TaggerEnsemble.load(runs, vectors=vectors, precision=precision, backend=backend)


def _function(name: str) -> Any:
    """The function that ``module:function`` names."""
    module, _, function = name.partition(":")
    try:
        return attrgetter(function)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--tokenizer {name} was not found: {error}") from error


def _columns(model, part: list, raw: bool, tokenize) -> Iterator[str]:
    """The lines of ``--output columns``."""
    from fastrnn.data.batches import word_of
    from fastrnn.data.tokens import token_spans

    if raw:
        part = [[text[a:b] for a, b in token_spans(text, tokenize)] for text in part]
    for tokens, tags in zip(part, model.predict(part), strict=True):
        for token, tagged in zip(tokens, tags, strict=True):
            yield f"{word_of(token)}\t{tagged}\n"
        yield "\n"


def _json(model, part: list, raw: bool, tokenize) -> Iterator[str]:
    """The lines of ``--output jsonl``."""
    if raw:
        for text, found in zip(part, model.entities(part, tokenize=tokenize), strict=True):
            yield _line({"text": text, "entities": [e._asdict() for e in found]})
        return
    tags_of, found_in = model.fitted_.label(model._sentences(part))
    for tokens, tags, found in zip(part, tags_of, found_in, strict=True):
        entities = [
            {"type": kind, "start": start, "end": end, "confidence": confidence}
            for kind, start, end, confidence in found
        ]
        yield _line({"tokens": tokens, "tags": tags, "entities": entities})


def _line(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _untagged(
    file: str, form: str, token_column: int, feature_columns: list[int]
) -> Iterator[list["Token"] | str]:
    """Yield the tokens of each sentence (or each text) of a file or of standard input as they are
    read."""
    from fastrnn.data.sentences import parse_columns, read_lines, read_sentences

    suffix = Path(file).suffix
    form = form or {".txt": "lines", "": "lines", ".jsonl": "jsonl"}.get(suffix, "columns")
    if form not in ("columns", "jsonl", "lines", "text"):
        raise ValueError(f"--format must be columns, jsonl, lines or text; got {form!r}")
    if form == "jsonl" and suffix != ".jsonl":
        raise ValueError(f"--format jsonl needs a file whose name ends in .jsonl, got {file}")
    if form == "jsonl":
        for sentence in read_sentences(file, tag_column=None):
            yield sentence.tokens
        return
    lines: Iterable[str] = read_lines(None if file == "-" else file)
    if form == "columns":
        for sentence in parse_columns(
            lines, file, token_column, tag_column=None, feature_columns=feature_columns
        ):
            yield sentence.tokens
        return
    for line in lines:
        if form == "text":
            yield line
        else:
            yield [token for token in line.replace("\t", " ").split(" ") if token]


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A tagger's folder.")],
    file: Annotated[Path, typer.Argument(help="Tagged sentences: CoNLL columns or .jsonl.")],
    more: More = None,
    token_column: TokenColumn = 0,
    tag_column: TagColumn = -1,
    feature_columns: FeatureColumns = "",
    vectors: Vectors = None,
    precision: Precision | None = None,
    backend: Backend = "cpu",
    threads: Threads = None,
) -> None:
    """Score a tagger: precision, recall and F1 of entities, by type and overall."""
    with processes() as group:
        from fastrnn.metrics import report

        set_threads(threads)
        model = _load([run, *(more or [])], vectors, precision, backend)
        tagged = read_tagged(file, token_column, tag_column, feature_columns)
        scores = report(model.evaluate(*tagged, group=group))
        if group.lead:
            typer.echo(scores)
