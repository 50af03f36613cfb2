"""``fastrnn train lm``, ``sample`` and ``score``."""

import inspect
import json
import math
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    Backend,
    Precision,
    Shards,
    Threads,
    app,
    clear_errors,
    group_of,
    is_given,
    numbers,
    open_run,
    options_of,
    processes,
    set_threads,
    train_app,
    workers,
)
from .units import (
    UNIT_NAMES,
    UNIT_OPTIONS,
    Lower,
    MinCount,
    Tokenised,
    Unit,
    VocabSize,
    check_unit,
    new_vocabulary,
    read_units,
)

if TYPE_CHECKING:
    import numpy as np

    from fastrnn.data.encoded import EncodedText
    from fastrnn.distributed import Group
    from fastrnn.models import LanguageModel
    from fastrnn.optim import Constant, Optimizer

# What a run continued by --from cannot change: the vocabulary and the sizes of the weights.
_SHAPE = (*UNIT_OPTIONS, "embed", "hidden", "layers", "cell", "variant", "tied", "cutoffs")
_SCHEDULES = "constant", "cosine", "decay", "plateau"


def _model(
    text: "str | EncodedText", o: dict[str, Any], backend: Backend, begun: Path | None
) -> "LanguageModel":
    """The model of a run: new, with the weights of another run, or of the folder ``begun``."""
    from fastrnn.models import LanguageModel

    dropout = {name: o[name] for name in ("dropout", "input_dropout", "weight_dropout")}
    known = {"precision": o["precision"], "backend": backend, "seed": o["seed"]}
    if begun is not None:
        return LanguageModel.from_config(begun / "config.json", **known)
    if o["from_run"] is not None:
        return LanguageModel.load(o["from_run"], **known, **dropout)
    return LanguageModel(
        new_vocabulary(text, o),
        embedding_dim=o["embed"],
        hidden_size=o["hidden"],
        num_layers=o["layers"],
        cell=o["cell"],
        cell_options={"variant": o["variant"]} if o["variant"] else None,
        tied=o["tied"],
        cutoffs=numbers("--cutoffs", o["cutoffs"]) or None,
        precision=o["precision"],
        backend=backend,
        seed=o["seed"],
        **dropout,
    )


def _schedule(o: dict[str, Any], steps: int, epoch: int) -> "Constant":
    """The schedule of a run of ``steps`` steps, with ``epoch`` steps in an epoch."""
    from fastrnn import optim

    if o["schedule"] == "cosine":
        return optim.Cosine(steps, warmup=o["warmup"])
    if o["schedule"] == "decay":
        start = o["decay_after"] * epoch
        return optim.StepDecay(epoch, gamma=o["decay"], start=start, warmup=o["warmup"])
    return optim.ReduceOnPlateau() if o["schedule"] == "plateau" else optim.Constant()


def _optimizer(o: dict[str, Any]) -> "Optimizer":
    from fastrnn import optim

    decay = {} if o["weight_decay"] is None else {"weight_decay": o["weight_decay"]}
    return optim.OPTIMIZERS[o["optimizer"]](o["lr"], **decay)


def train_language_model(
    text: "str | EncodedText",
    valid: str | None,
    out: Path,
    options: dict[str, Any],
    *,
    backend: Backend = "cpu",
    resume: bool = False,
    group: "Group | None" = None,
) -> "LanguageModel":
    """Train with these options of ``train lm`` in the folder ``out``; return the model with its
    best weights."""
    from tqdm import tqdm

    from fastrnn import optim
    from fastrnn.checkpoint import save_json
    from fastrnn.data.text import TextStream
    from fastrnn.distributed import Group
    from fastrnn.kernels.backend import training_precisions
    from fastrnn.models.text_predictor import perplexity_of
    from fastrnn.trainer import Trainer

    defaults = {k: p.default for k, p in inspect.signature(train_lm).parameters.items()}
    o = defaults | options
    for name, choices in (
        ("unit", ("char", "word", "bpe")),
        ("optimizer", optim.OPTIMIZERS),
        ("schedule", _SCHEDULES),
        ("precision", training_precisions(backend)),
    ):
        if o[name] not in choices:
            raise ValueError(f"--{name} must be one of {', '.join(choices)}; got {o[name]!r}")
    group = group or Group(o["shards"] or 1)
    begun = group.share(lambda: resume and (out / "checkpoint.safetensors").exists())
    model = _model(text, o, backend, out if begun else None)
    vocabulary = model.vocabulary
    ids: np.ndarray | EncodedText
    if isinstance(text, str):
        ids, characters = vocabulary.encode(text), len(text)
    elif text.vocabulary.config() == vocabulary.config():
        ids, characters = text, text.characters
    else:
        raise ValueError("the text is encoded with another vocabulary than the model has")
    data = TextStream(ids, o["batch"], o["bptt"], variable=o["variable_bptt"], seed=o["seed"])
    steps = o["epochs"] * len(data) or o["steps"]
    of_characters = vocabulary.unit == "character"
    metric, shown = ("valid_bpc", "bits per character")
    if not of_characters:
        metric, shown = "valid_perplexity", "perplexity"
    valid_ids = None if valid is None else vocabulary.encode(valid)
    if valid_ids is not None and len(valid_ids) < 2:
        raise ValueError(f"--valid must have at least 2 {vocabulary.unit}s")

    def evaluate() -> float:
        assert valid_ids is not None
        nats = model.cross_entropy(valid_ids, group=group)
        return nats / math.log(2) if of_characters else perplexity_of(nats)

    trainer = Trainer(
        model,
        _optimizer(o),
        data,
        out,
        max_norm=o["clip"] or None,
        schedule=_schedule(o, steps, len(data)),
        evaluate=None if valid_ids is None else evaluate,
        metric=metric,
        evaluate_every=o["eval_every"],
        patience=o["patience"] or None,
        report=tqdm.write,  # above the progress bar
        group=group,
    )
    # A cosine schedule depends on the total number of steps; other runs may be extended.
    longer = () if o["schedule"] == "cosine" else ("steps", "epochs")
    group.share(lambda: open_run(out, resume, options, ("lr", "precision", *longer)))
    if resume:
        trainer.resume()
    if not begun:
        group.share(lambda: save_json(out / "config.json", model.config()))
    count = len(data) * data.batch * data.bptt
    numbers = sum(w.size for w in model.parameters.values())
    say = typer.echo if group.lead else lambda _: None
    say(
        f"{characters:,} characters, about {count:,} {vocabulary.unit}s, {len(vocabulary):,} of "
        f"them different, {numbers:,} parameters, {workers(group)}"
    )
    trainer.train(steps=steps)
    if trainer.stopped == "interrupted":
        say(f"stopped at step {trainer.step}; saved in {trainer.checkpoint}")
        raise typer.Exit(130)
    best = "" if trainer.best is None else f", best {shown} {trainer.best:.3f}"
    say(f"{trainer.step} steps, {trainer.rate:,.0f} {vocabulary.unit}s per second{best}")
    return model


def _options(context: typer.Context, before: Path | None) -> dict[str, Any]:
    """`options_of`, also for a model that was saved in Python and has no options."""
    from fastrnn.checkpoint import load_json

    if before is None or (before / "options.json").exists():
        return options_of(context, before)
    config = load_json(before / "config.json")
    names = {"embedding_dim": "embed", "hidden_size": "hidden", "num_layers": "layers"}
    same = ("cell", "tied", "dropout", "input_dropout", "weight_dropout", "precision")
    known = {option: config.get(name) for name, option in names.items()}
    known |= {name: config[name] for name in same if name in config}
    return options_of(context, None, known)


@train_app.command("lm")
def train_lm(
    context: typer.Context,
    text: Annotated[
        list[Path] | None,
        typer.Argument(
            help="UTF-8 files, read one after the other, or the folder of `fastrnn data encode`."
        ),
    ] = None,
    valid: Annotated[Path | None, typer.Option(help="UTF-8 text to evaluate on.")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("run"),
    from_run: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Start with the best weights of this run; options that are not given are its own.",
        ),
    ] = None,
    unit: Unit = "char",
    vocab_size: VocabSize = 10_000,
    lower: Lower = False,
    tokenised: Tokenised = False,
    min_count: MinCount = None,
    embed: Annotated[int, typer.Option(min=0, help="Embedding size; 0: one-hot.")] = 64,
    hidden: Annotated[int, typer.Option(min=1, help="Units per layer.")] = 512,
    layers: Annotated[int, typer.Option(min=1, help="Recurrent layers.")] = 1,
    cell: Annotated[str, typer.Option(help="lstm, gru or rnn.")] = "lstm",
    variant: Annotated[str, typer.Option(help="Of the cell, such as peephole.")] = "",
    tied: Annotated[
        bool, typer.Option("--tied", help="One weight for embedding and softmax.")
    ] = False,
    cutoffs: Annotated[
        str, typer.Option(help="Adaptive softmax: where clusters begin, such as 2000,10000.")
    ] = "",
    dropout: Annotated[float, typer.Option(help="Dropout after each recurrent layer.")] = 0.0,
    input_dropout: Annotated[float, typer.Option(help="Dropout of the embedding.")] = 0.0,
    weight_dropout: Annotated[float, typer.Option(help="Dropout of recurrent weights.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Streams read in parallel.")] = 64,
    bptt: Annotated[int, typer.Option(min=1, help="Units to backpropagate through.")] = 100,
    variable_bptt: Annotated[
        bool, typer.Option("--variable-bptt", help="Vary their number around this one.")
    ] = False,
    optimizer: Annotated[str, typer.Option(help="adam, adamw, sgd or asgd (averaged).")] = "adam",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 2e-3,
    weight_decay: Annotated[
        float | None, typer.Option(min=0, help="By default 0.01 for adamw, 0 for others.")
    ] = None,
    schedule: Annotated[str, typer.Option(help="constant, cosine, decay or plateau.")] = "constant",
    warmup: Annotated[int, typer.Option(min=0, help="Warm-up steps: cosine or decay.")] = 0,
    decay: Annotated[
        float, typer.Option(min=0, max=1, help="Factor of the rate per epoch, with decay.")
    ] = 0.5,
    decay_after: Annotated[
        int, typer.Option(min=0, help="Epochs at the full rate, with decay.")
    ] = 4,
    clip: Annotated[float, typer.Option(min=0, help="Largest gradient norm; 0: no limit.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Total number of steps.")] = 2000,
    epochs: Annotated[int, typer.Option(min=0, help="Total number of epochs, not steps.")] = 0,
    eval_every: Annotated[
        int, typer.Option(min=0, help="Steps between evaluations; 0: an epoch.")
    ] = 100,
    valid_chars: Annotated[
        int, typer.Option(min=2, help="Characters of --valid to use, from its start.")
    ] = 200_000,
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after N evaluations without a new best; 0: never.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed for weights and dropout.")] = 0,
    shards: Shards = None,
    precision: Precision = "float32",
    backend: Backend = "cpu",
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
) -> None:
    """Train a language model; Ctrl-C saves, --resume continues.

    A run that is resumed keeps its options; --steps, --epochs, --lr and --precision may be changed.
    To change others, begin a new run with the weights of an old one: --from.
    """
    with processes() as job:
        from fastrnn.data.text import read_text

        set_threads(threads)
        if resume and from_run is not None:
            raise ValueError("--resume and --from exclude each other")
        before = out if resume else from_run
        if before is not None and not resume:
            fixed = [name for name in _SHAPE if is_given(context, name)]
            if fixed:
                named = ", ".join(f"--{name.replace('_', '-')}" for name in fixed)
                raise ValueError(f"{named} cannot be given with --from: {before} decides")
        options = _options(context, before)
        check_unit(context, options)
        if resume and is_given(context, "steps") and not is_given(context, "epochs"):
            options["epochs"] = 0
        if not options["text"]:
            raise ValueError("train lm needs a text (or --resume)")
        if options["warmup"] and options["schedule"] not in ("cosine", "decay"):
            raise ValueError("--warmup goes with --schedule cosine or decay")
        if not resume:
            options["from_run"] = from_run and str(from_run)
            options["shards"] = shards  # not those of the other run
        files, other = options["text"], options["valid"]
        whole = read_units(files)
        held_out = None if other is None else read_text(other)[: options["valid_chars"]]
        # Compared when the run is resumed: files of the same names could hold another text.
        options["text"], options["valid"] = [str(path) for path in files], other and str(other)
        if isinstance(whole, str):
            known = whole
        else:
            given = [name for name in UNIT_OPTIONS if is_given(context, name)]
            if given:
                option = given[0].replace("_", "-")
                raise ValueError(f"--{option} cannot be given: the text is encoded already")
            known = str(whole.checksum)
            options["unit"] = UNIT_NAMES[whole.vocabulary.unit]
        options["checksum"] = zlib.crc32(f"{known}\0{held_out}".encode("utf-8", "surrogatepass"))
        group = group_of(job, options, resume)
        train_language_model(
            whole, held_out, out, options, backend=backend, resume=resume, group=group
        )
        if group.lead:
            typer.echo(f"model and history: {out}")


Run = Annotated[Path, typer.Argument(help="A run's folder.")]


@app.command()
def sample(
    run: Run,
    length: Annotated[int, typer.Option(min=0, help="Units to generate.")] = 500,
    prime: Annotated[str, typer.Option(help="Text to continue.")] = "\n",
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0: always the most likely unit.")
    ] = 0.7,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Choose among the K most likely units.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Choose among the most likely units with this probability in total."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    precision: Precision | None = None,
    backend: Backend = "cpu",
    threads: Threads = None,
) -> None:
    """Generate text with a language model."""
    with clear_errors():
        from fastrnn.models import LanguageModel

        set_threads(threads)
        model = LanguageModel.load(run, precision=precision, backend=backend)
        vocabulary = model.vocabulary
        if vocabulary.unit == "character":
            unknown = sorted(
                set(prime) - set(model.vocabulary.decode(range(len(model.vocabulary))))
            )
            if unknown:
                typer.echo(
                    f"the model does not know these characters of --prime: {unknown}", err=True
                )
        elif vocabulary.unknown in vocabulary.encode(prime):
            typer.echo(f"the model does not know all {vocabulary.unit}s of --prime", err=True)
        more = model.sample(
            length, prime=prime, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )
        blank = " " if model.vocabulary.unit == "word" and not prime.endswith("\n") else ""
        typer.echo(prime + blank + more)


@app.command()
def score(
    run: Run,
    file: Annotated[str, typer.Argument(help="UTF-8 text; - for standard input.")] = "-",
    prime: Annotated[str, typer.Option(help="Text that comes before.")] = "\n",
    precision: Precision | None = None,
    backend: Backend = "cpu",
    threads: Threads = None,
) -> None:
    """The log-probability (natural) of each unit of a text, by a language model.

    A line per unit: the log-probability, a tab, the unit as a JSON string. A summary goes to the
    standard error stream.
    """
    with clear_errors():
        from fastrnn.data.text import read_text
        from fastrnn.models import LanguageModel
        from fastrnn.models.text_predictor import perplexity_of

        set_threads(threads)
        model = LanguageModel.load(run, precision=precision, backend=backend)
        text = sys.stdin.buffer.read().decode("utf-8") if file == "-" else read_text(file)
        scored = model.score(text, prime=prime)
        lines = [f"{p:.6f}\t{json.dumps(unit, ensure_ascii=False)}\n" for unit, p in scored]
        sys.stdout.write("".join(lines))
        if scored:
            nats, name = -sum(p for _, p in scored), model.vocabulary.unit
            ids = model.vocabulary.encode(text)
            typer.echo(
                f"{len(scored):,} {name}s, {(ids == model.vocabulary.unknown).sum():,} of them "
                f"unknown; perplexity {perplexity_of(nats / len(scored)):.3f}, "
                f"{nats / len(text) / math.log(2):.4f} bits per character",
                err=True,
            )
