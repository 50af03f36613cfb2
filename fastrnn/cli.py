"""The command line: ``fastrnn demo | train | sample | plot | info``."""

import contextlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

try:
    import typer
except ImportError:  # the extra is not there: say so when it is asked for
    typer = None  # type: ignore[assignment]

if typer is not None:
    app = typer.Typer(
        help="Fast recurrent networks on the CPU.", no_args_is_help=True, add_completion=False
    )
    train_app = typer.Typer(help="Train a model.", no_args_is_help=True)
    app.add_typer(train_app, name="train")


def main() -> None:
    """The ``fastrnn`` command."""
    if typer is None:
        sys.exit('the command line needs typer: pip install "fastrnn[cli]"')
    app()


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """What goes wrong with the user's input is one line, not a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        typer.secho(f"fastrnn: {error}", err=True, fg="red")
        raise typer.Exit(1) from None


def _new_run(out: Path, resume: bool, options: dict) -> None:
    """Make the run's folder, or check that a run to go on with is the same one."""
    path = out / "options.json"
    from fastrnn.checkpoint import load_json, save_json

    if not resume:
        if path.exists() or (out / "history.jsonl").exists():
            raise ValueError(f"{out} holds a run already: add --resume, or choose another --out")
        save_json(path, options)
        return
    before = load_json(path)
    changed = {k for k in options if k != "steps" and options[k] != before.get(k)}
    if changed:
        named = ", ".join(f"--{k.replace('_', '-')} was {before.get(k)!r}" for k in sorted(changed))
        raise ValueError(f"{out} cannot go on with other options: {named}")


def _train_language_model(
    text: str,
    valid: str | None,
    out: Path,
    *,
    resume: bool,
    options: dict,
) -> "object":
    """Train by ``options`` and return the trainer; the model is in ``out``."""
    from fastrnn import optim
    from fastrnn.checkpoint import save_json
    from fastrnn.data.text import TextStream, Vocabulary
    from fastrnn.kernels.cpu.threads import get_num_threads
    from fastrnn.models import LanguageModel
    from fastrnn.trainer import Trainer

    o = options
    vocabulary = Vocabulary.of(text, min_count=o["min_count"])
    model = LanguageModel(
        vocabulary,
        embedding_dim=o["embed"],
        hidden_size=o["hidden"],
        num_layers=o["layers"],
        dropout=o["dropout"],
        seed=o["seed"],
    )
    data = TextStream(vocabulary.encode(text), o["batch"], o["bptt"])
    valid_ids = None if valid is None else vocabulary.encode(valid)
    schedules = {
        "constant": optim.Constant,
        "cosine": lambda: optim.Cosine(o["steps"], warmup=o["warmup"]),
        "plateau": optim.ReduceOnPlateau,
    }
    for name, choices in (("optimizer", optim.OPTIMIZERS), ("schedule", schedules)):
        if o[name] not in choices:
            raise ValueError(f"--{name} must be one of {', '.join(choices)}; got {o[name]!r}")
    trainer = Trainer(
        model,
        optim.OPTIMIZERS[o["optimizer"]](o["lr"]),
        data,
        out,
        max_norm=o["clip"] or None,
        schedule=schedules[o["schedule"]](),
        evaluate=None if valid_ids is None else lambda: model.bits_per_character(valid_ids),
        metric="valid_bpc",
        evaluate_every=o["eval_every"],
        patience=o["patience"] or None,
        report=typer.echo,
    )
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
        typer.echo(f"stopped at step {trainer.step}; --resume goes on from {trainer.checkpoint}")
        raise typer.Exit(130)
    rate = o["batch"] * o["bptt"] * trainer.step / max(trainer._seconds, 1e-9)
    best = "" if trainer.best is None else f", best {trainer.best:.3f} bits per character"
    typer.echo(f"{trainer.step} steps, {rate:,.0f} characters a second{best}")
    return model


if typer is not None:
    _Threads = Annotated[int | None, typer.Option(min=1, help="All CPUs when left out.")]

    def _set_threads(threads: int | None) -> None:
        if threads is not None:
            from fastrnn.kernels.cpu.threads import set_num_threads

            set_num_threads(threads)

    @train_app.command("lm")
    def train_lm(
        text: Annotated[list[Path], typer.Argument(help="UTF-8 files, read one after the other.")],
        valid: Annotated[Path | None, typer.Option(help="UTF-8 text to evaluate on.")] = None,
        out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("run"),
        embed: Annotated[int, typer.Option(min=0, help="Embedding size; 0: one-hot.")] = 64,
        hidden: Annotated[int, typer.Option(min=1)] = 512,
        layers: Annotated[int, typer.Option(min=1)] = 1,
        dropout: float = 0.0,
        batch: Annotated[int, typer.Option(min=1, help="Streams read side by side.")] = 64,
        bptt: Annotated[int, typer.Option(min=1, help="Characters a gradient reaches.")] = 100,
        optimizer: Annotated[str, typer.Option(help="adam, adamw or sgd.")] = "adam",
        lr: float = 2e-3,
        schedule: Annotated[str, typer.Option(help="constant, cosine or plateau.")] = "constant",
        warmup: Annotated[int, typer.Option(min=0, help="Steps, with cosine.")] = 0,
        clip: Annotated[float, typer.Option(help="Largest gradient norm; 0: none.")] = 1.0,
        steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 2000,
        eval_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 100,
        valid_chars: Annotated[
            int, typer.Option(min=2, help="Of --valid, from its start.")
        ] = 200_000,
        patience: Annotated[
            int, typer.Option(min=0, help="Evaluations without a new best before stopping; 0: no.")
        ] = 0,
        min_count: Annotated[
            int | None, typer.Option(min=1, help="Rarer characters are one unknown symbol.")
        ] = None,
        seed: int = 0,
        threads: _Threads = None,
        resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    ) -> None:
        """Train a character language model; Ctrl-C saves, --resume goes on."""
        names = (
            "embed hidden layers dropout batch bptt optimizer lr schedule warmup clip steps "
            "eval_every valid_chars patience min_count seed"
        ).split()
        given = locals()
        options = {name: given[name] for name in names}
        options |= {
            "text": [str(p.resolve()) for p in text],
            "valid": valid and str(valid.resolve()),
        }
        with _clear_errors():
            from fastrnn.data.text import read_text

            _set_threads(threads)
            whole = "".join(map(read_text, text))
            held_out = None if valid is None else read_text(valid)[:valid_chars]
            _new_run(out, resume, options)
            _train_language_model(whole, held_out, out, resume=resume, options=options)
            typer.echo(f"model and history: {out}")

    @app.command()
    def demo(
        out: Annotated[Path, typer.Option(help="The run's folder; replaced.")] = Path(
            "fastrnn-demo"
        ),
        steps: Annotated[int, typer.Option(min=1)] = 800,
        threads: _Threads = None,
    ) -> None:
        """Train a character LSTM on the text that ships with Python, in about a minute."""
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
        cut = int(len(text) * 0.95)
        options = {
            "embed": 32, "hidden": 256, "layers": 1, "dropout": 0.0, "batch": 32, "bptt": 64,
            "optimizer": "adam", "lr": 4e-3, "schedule": "cosine", "warmup": 20, "clip": 1.0,
            "steps": steps, "eval_every": max(1, steps // 8), "patience": 0, "min_count": None,
            "seed": 0,
        }  # fmt: skip
        with _clear_errors():
            _set_threads(threads)
            started = time.perf_counter()
            if (out / "options.json").exists():
                shutil.rmtree(out)
            _new_run(out, False, options)
            typer.echo("Python's own documentation; the first run compiles the kernels (10 s).")
            model = _train_language_model(
                text[:cut], text[cut:], out, resume=False, options=options
            )
            typer.echo("\nwhat it writes after 'The ':\n")
            typer.echo("The " + model.sample(400, prime="The ", temperature=0.5, seed=1))
            typer.echo(f"\n{time.perf_counter() - started:.0f} s in all")
            typer.echo(f"model    {out}")
            from fastrnn.plots import plot_runs

            picture = plot_runs([out], out / "curve.png", title="fastrnn demo")
            typer.echo(f"picture  {picture}")
            typer.echo(f"more     fastrnn sample {out} --prime 'A class '")

    @app.command()
    def sample(
        run: Path,
        length: Annotated[int, typer.Option(min=0)] = 500,
        prime: Annotated[str, typer.Option(help="Text to go on from.")] = "\n",
        temperature: Annotated[float, typer.Option(help="0: the most likely each time.")] = 0.7,
        seed: int | None = None,
        threads: _Threads = None,
    ) -> None:
        """Let a language model write."""
        with _clear_errors():
            from fastrnn.models import LanguageModel

            _set_threads(threads)
            model = LanguageModel.load(run)
            text = model.sample(length, prime=prime, temperature=temperature, seed=seed)
            typer.echo(prime + text)

    @app.command()
    def plot(
        runs: list[Path],
        out: Annotated[
            Path | None, typer.Option(help="The picture; RUN/curve.png when left out.")
        ] = None,
        against: Annotated[str, typer.Option(help="step or seconds.")] = "step",
        title: str | None = None,
    ) -> None:
        """Draw the curves of runs: each batch, smoothed, evaluations; several in one picture."""
        with _clear_errors():
            from fastrnn.plots import plot_runs

            typer.echo(plot_runs(runs, out or runs[0] / "curve.png", against=against, title=title))

    @app.command()
    def info() -> None:
        """Show the CPU path, the threads, the versions and the cache."""
        with _clear_errors():
            from fastrnn.kernels.cpu import compiler, simd, threads

            facts = {
                "fastrnn": version("fastrnn"),
                "cpu path": f"{simd.ISA.name} ({simd.width('float32')} float32 lanes)",
                "threads": f"{threads.get_num_threads()} of {os.cpu_count()} CPUs",
                "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
                **{name: version(name) for name in ("numpy", "numba", "llvmlite", "scipy")},
                "cache": str(compiler.cache_dir()),
            }
            for name, fact in facts.items():
                typer.echo(f"{name:<9} {fact}")


if __name__ == "__main__":
    main()
