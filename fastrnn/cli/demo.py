"""``fastrnn demo``: a model of each kind, trained on data that ships with Python."""

import keyword
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from .common import Threads, app, clear_errors, set_threads, typer

_SENTENCE = re.compile(r"(?<=[.!?:]) +(?=[A-Z\"])")
_QUOTED = re.compile(r'"([^"]{1,60})"')
_TOKEN = re.compile(r"\w+|[^\w\s]")

_FILES = (
    "config.json", "options.json", "history.jsonl", "checkpoint.safetensors",
    "weights.safetensors", "curve.png",
)  # fmt: skip

Sentences = tuple[list[list[str]], list[list[str]]]


@app.command()
def demo(
    model: Annotated[str, typer.Argument(help="lm (a language model) or tagger.")] = "lm",
    out: Annotated[
        Path, typer.Option(help="The run's folder; an earlier demo there is replaced.")
    ] = Path("fastrnn-demo"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of the language model.")] = 1600,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the tagger.")] = 20,
    threads: Threads = None,
) -> None:
    """Train on the documentation that ships with Python, in about a minute.

    The language model learns to write it, the tagger to find the pieces of code in its sentences.
    """
    with clear_errors():
        from fastrnn.plots import plot_runs

        if model not in ("lm", "tagger"):
            raise ValueError(f"demo must be lm or tagger, got {model!r}")
        set_threads(threads)
        started = time.perf_counter()
        _make_room(out)
        typer.echo("training on Python's documentation")
        more = _language_model(out, steps) if model == "lm" else _tagger(out, epochs)
        picture = plot_runs([out], out / "curve.png", title="fastrnn demo")
        typer.echo(f"{time.perf_counter() - started:.0f} s in total")
        typer.echo(f"model    {out}")
        typer.echo(f"picture  {picture}")
        typer.echo(f"more     {more}")


def _make_room(out: Path) -> None:
    """Remove an earlier demo from the folder; refuse a folder with anything else."""
    from fastrnn.checkpoint import only_one

    mark = out / ".demo"
    out.mkdir(parents=True, exist_ok=True)
    if mark.exists():
        with only_one(out):
            for name in _FILES:
                (out / name).unlink(missing_ok=True)
    elif any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose another folder, --out")
    mark.touch()


def _language_model(out: Path, steps: int) -> str:
    from pydoc_data.topics import topics

    from .language_model import train_language_model

    text = "\n\n".join(topics[name] for name in sorted(topics))
    cut = int(len(text) * 0.95)
    options = {
        "text": "pydoc_data.topics", "embed": 32, "hidden": 256, "layers": 1, "dropout": 0.0,
        "batch": 32, "bptt": 64, "optimizer": "adam", "lr": 4e-3, "schedule": "cosine",
        "warmup": steps // 40, "clip": 1.0, "steps": steps, "eval_every": max(1, steps // 8),
        "patience": 0, "min_count": None, "seed": 0, "precision": "float32",
    }  # fmt: skip
    model = train_language_model(text[:cut], text[cut:], out, options)
    sampled = model.sample(400, prime="The ", temperature=0.5, seed=0)
    typer.echo(f"\nwhat it writes after 'The ':\n\nThe {sampled}\n")
    return f"fastrnn sample {out} --prime 'A class '"


def _tagger(out: Path, epochs: int) -> str:
    from fastrnn.metrics import report
    from fastrnn.models import Tagger

    train, dev, test = _tagged_sentences()
    typer.echo(f"{len(train[0]):,} sentences, {sum(map(len, train[0])):,} tokens")
    tagger = Tagger(epochs=epochs).fit(*train, dev=dev, run=out, report=typer.echo)
    typer.echo(f"\nin sentences it has not seen:\n{report(tagger.evaluate(*test))}\n")
    shown = next(x for x, y in zip(*test, strict=True) if len(x) < 25 and len(set(y)) > 2)
    pairs = zip(shown, tagger.predict([shown])[0], strict=True)
    typer.echo(" ".join(word if tag == "O" else f"[{word} {tag}]" for word, tag in pairs) + "\n")
    return f"echo 'The for statement raises StopIteration .' | fastrnn tag {out}"


def _tagged_sentences() -> tuple[Sentences, Sentences, Sentences]:
    """Sentences of the documentation in three parts, with tags where it has quotation marks."""
    from pydoc_data.topics import topics

    found = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            lines = paragraph.split("\n")
            if all(line[:1].strip() for line in lines):  # indented lines are code
                for sentence in _SENTENCE.split(" ".join(lines)):
                    pairs = list(_tokens(sentence))
                    if len(pairs) > 3:
                        found[tuple(word for word, _ in pairs)] = [tag for _, tag in pairs]
    sentences = list(found.items())
    random.Random(0).shuffle(sentences)
    tenth = len(sentences) // 10
    parts = sentences[2 * tenth :], sentences[:tenth], sentences[tenth : 2 * tenth]
    train, dev, test = (([list(x) for x, _ in p], [y for _, y in p]) for p in parts)
    return train, dev, test


def _tokens(sentence: str) -> Iterator[tuple[str, str]]:
    """Tokens and their tags; what stood in quotation marks is an entity, and they are left out."""
    for number, part in enumerate(_QUOTED.split(sentence)):
        prefix = "B"
        for word in _TOKEN.findall(part):
            yield word, f"{prefix}-{_kind(part)}" if number % 2 else "O"
            prefix = "I"


def _kind(code: str) -> str:
    if keyword.iskeyword(code):
        return "Keyword"
    if re.fullmatch(r"[\w.]*__\w+__(\(.*\))?", code):
        return "Special"
    return "Exception" if re.search(r"(Error|Exception|Warning|Iteration)$", code) else "Code"
