"""``fastrnn train lm`` and ``sample``."""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    Backend,
    Precision,
    Threads,
    app,
    clear_errors,
    open_run,
    options_of,
    set_threads,
    train_app,
)

if TYPE_CHECKING:
    from fastrnn.models import LanguageModel


def train_language_model(
    text: str,
    valid: str | None,
    out: Path,
    options: dict[str, Any],
    *,
    backend: Backend = "cpu",
    resume: bool = False,
) -> "LanguageModel":
    """Train with these options in the folder ``out``; return the model with its best weights."""
    from tqdm import tqdm

    from fastrnn import optim
    from fastrnn.checkpoint import save_json
    from fastrnn.data.text import TextStream, Vocabulary
    from fastrnn.kernels.backend import training_precisions
    from fastrnn.models import LanguageModel
    from fastrnn.runtime.threads import get_num_threads
    from fastrnn.trainer import Trainer

    o = options
    schedules = {
        "constant": optim.Constant,
        "cosine": lambda: optim.Cosine(o["steps"], warmup=o["warmup"]),
        "plateau": optim.ReduceOnPlateau,
    }
    for name, choices in (
        ("optimizer", optim.OPTIMIZERS),
        ("schedule", schedules),
        ("precision", training_precisions(backend)),
    ):
        if o[name] not in choices:
            raise ValueError(f"--{name} must be one of {', '.join(choices)}; got {o[name]!r}")
    optimizer, schedule = optim.OPTIMIZERS[o["optimizer"]](o["lr"]), schedules[o["schedule"]]()
    vocabulary = Vocabulary.of(text, min_count=o["min_count"])
    model = LanguageModel(
        vocabulary,
        embedding_dim=o["embed"],
        hidden_size=o["hidden"],
        num_layers=o["layers"],
        dropout=o["dropout"],
        precision=o["precision"],
        backend=backend,
        seed=o["seed"],
    )
    valid_ids = None if valid is None else vocabulary.encode(valid)
    trainer = Trainer(
        model,
        optimizer,
        TextStream(vocabulary.encode(text), o["batch"], o["bptt"]),
        out,
        max_norm=o["clip"] or None,
        schedule=schedule,
        evaluate=None if valid_ids is None else lambda: model.bits_per_character(valid_ids),
        metric="valid_bpc",
        evaluate_every=o["eval_every"],
        patience=o["patience"] or None,
        report=tqdm.write,  # above the progress bar
    )
    # A cosine schedule depends on the total number of steps; other runs may be extended.
    free = ("lr", "precision") if o["schedule"] == "cosine" else ("lr", "precision", "steps")
    open_run(out, resume, options, free)
    if resume:
        trainer.resume()
    else:
        save_json(out / "config.json", model.config())
    typer.echo(
        f"{len(text):,} characters, {len(vocabulary)} symbols, "
        f"{model.parameters.size:,} parameters, {get_num_threads()} threads"
    )
    trainer.train(steps=o["steps"])
    if trainer.stopped == "interrupted":
        typer.echo(f"stopped at step {trainer.step}; saved in {trainer.checkpoint}")
        raise typer.Exit(130)
    best = "" if trainer.best is None else f", best {trainer.best:.3f} bits per character"
    typer.echo(f"{trainer.step} steps, {trainer.rate:,.0f} characters per second{best}")
    return model


@train_app.command("lm")
def train_lm(
    context: typer.Context,
    text: Annotated[
        list[Path] | None, typer.Argument(help="UTF-8 files, read one after the other.")
    ] = None,
    valid: Annotated[Path | None, typer.Option(help="UTF-8 text to evaluate on.")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("run"),
    embed: Annotated[int, typer.Option(min=0, help="Embedding size; 0: one-hot.")] = 64,
    hidden: Annotated[int, typer.Option(min=1, help="Units per layer.")] = 512,
    layers: Annotated[int, typer.Option(min=1, help="LSTM layers.")] = 1,
    dropout: Annotated[float, typer.Option(help="Dropout after each LSTM layer.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Streams read in parallel.")] = 64,
    bptt: Annotated[int, typer.Option(min=1, help="Characters to backpropagate through.")] = 100,
    optimizer: Annotated[str, typer.Option(help="adam, adamw or sgd.")] = "adam",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 2e-3,
    schedule: Annotated[str, typer.Option(help="constant, cosine or plateau.")] = "constant",
    warmup: Annotated[int, typer.Option(min=0, help="Warm-up steps, with cosine.")] = 0,
    clip: Annotated[float, typer.Option(min=0, help="Largest gradient norm; 0: no limit.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Total number of steps.")] = 2000,
    eval_every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 100,
    valid_chars: Annotated[
        int, typer.Option(min=2, help="Characters of --valid to use, from its start.")
    ] = 200_000,
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after N evaluations without a new best; 0: never.")
    ] = 0,
    min_count: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Characters that occur less often become the unknown symbol. "
            "By default one in 100,000, at most 100.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for weights and dropout.")] = 0,
    precision: Precision = "float32",
    backend: Backend = "cpu",
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
) -> None:
    """Train a character language model; Ctrl-C saves, --resume continues.

    A run that is resumed keeps its options; --steps, --lr and --precision may be changed.
    """
    with clear_errors():
        from fastrnn.data.text import read_text

        set_threads(threads)
        options = options_of(context, out, resume)
        if not options["text"]:
            raise ValueError("train lm needs a text (or --resume)")
        if options["warmup"] and options["schedule"] != "cosine":
            raise ValueError("--warmup goes with --schedule cosine")
        files, other = options["text"], options["valid"]
        whole = "".join(map(read_text, files))
        held_out = None if other is None else read_text(other)[: options["valid_chars"]]
        # Compared when the run is resumed: files of the same names could hold another text.
        options["text"], options["valid"] = [str(path) for path in files], other and str(other)
        options["checksum"] = zlib.crc32(f"{whole}\0{held_out}".encode("utf-8", "surrogatepass"))
        train_language_model(whole, held_out, out, options, backend=backend, resume=resume)
        typer.echo(f"model and history: {out}")


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    length: Annotated[int, typer.Option(min=0, help="Characters to generate.")] = 500,
    prime: Annotated[str, typer.Option(help="Text to continue.")] = "\n",
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0: always the most likely character.")
    ] = 0.7,
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
        unknown = sorted(set(prime) - set(model.vocabulary.symbols))
        if unknown:
            typer.echo(f"the model does not know these characters of --prime: {unknown}", err=True)
        typer.echo(prime + model.sample(length, prime=prime, temperature=temperature, seed=seed))
