"""``fastrnn plot`` and ``fastrnn report``: what became of a run."""

import base64
import contextlib
import html
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from .common import app, clear_errors, typer
from .tagger import Vectors, read_tagged

_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td { padding: 0 1.5em 0 0; vertical-align: top }
pre { background: #f4f4f4; padding: 1em; white-space: pre-wrap } img { max-width: 100% }
"""


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Image; by default curve.png in the first run's folder.")
    ] = None,
    against: Annotated[str, typer.Option(help="Horizontal axis: step or seconds.")] = "step",
    title: Annotated[str | None, typer.Option()] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw again when a run goes on, until Ctrl-C.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks, --watch.")] = 5.0,
) -> None:
    """Plot the learning curves of runs in one image: each batch, smoothed, evaluations."""
    with clear_errors():
        from fastrnn.plots import plot_runs

        picture = out or runs[0] / "curve.png"

        def draw() -> None:
            typer.echo(plot_runs(runs, picture, against=against, title=title))

        if not watch:
            return draw()
        seen: list[int] = []
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                histories = [run / "history.jsonl" for run in runs]
                sizes = [h.stat().st_size if h.exists() else 0 for h in histories]
                if sizes != seen and all(sizes):  # all have begun
                    draw()
                    seen = sizes
                time.sleep(every)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    data: Annotated[
        Path | None, typer.Option(help="Score a tagger on it; by default the run's --dev.")
    ] = None,
    vectors: Vectors = None,
    out: Annotated[Path | None, typer.Option(help="By default report.html in the folder.")] = None,
) -> None:
    """Write a run's curve, settings and results into one HTML file."""
    with clear_errors():
        from fastrnn.checkpoint import write_bytes

        page = out or run / "report.html"
        write_bytes(page, _page(run, data, vectors).encode())
        typer.echo(page)


def _page(run: Path, data: Path | None, vectors: str | None) -> str:
    from fastrnn.checkpoint import load_json
    from fastrnn.plots import plot_runs, read_history

    lines = read_history(run)
    config, options = (
        load_json(run / name) if (run / name).is_file() else {}
        for name in ("config.json", "options.json")
    )
    if not isinstance(config, dict) or not isinstance(options, dict):
        raise ValueError(f"{run}/config.json or options.json is damaged: it must hold an object")
    settings = options or config.get("params", config)
    with tempfile.TemporaryDirectory() as folder:
        picture = plot_runs([run], Path(folder) / "curve.png").read_bytes()
    last, items = lines[-1], sum(line.get("items", 0) for line in lines)
    facts = {
        "steps": f"{last['step']:,}",
        "seconds of training": f"{last['seconds']:,.1f}",
        "items per second": f"{items / (last['seconds'] or 1):,.0f}",
        "last loss, smoothed (nats)": f"{last['smoothed']:.4f}",
        "largest gradient norm": f"{max(x.get('grad_norm', 0) for x in lines):.3g}",
    } | _best(run)  # fmt: skip
    name = html.escape(str(run))
    image = base64.b64encode(picture).decode()
    parts = [
        f"<h1>{name}</h1>", _table(facts.items()),
        f'<h2>Curve</h2><img alt="learning curve" src="data:image/png;base64,{image}">',
        *_results(run, config.get("model"), data, vectors, options),
        "<h2>Settings</h2>", _table(settings.items()),
    ]  # fmt: skip
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _best(run: Path) -> dict[str, str]:
    """The best evaluation: `Trainer` notes it beside the weights that it keeps."""
    from fastrnn.checkpoint import load_arrays

    path = run / "weights.safetensors"
    notes = load_arrays(path)[1] if path.is_file() else {}
    return {
        f"best {name}": f"{value:.4f} (step {notes['step']:,})"
        for name, value in notes.items() if name != "step" and "step" in notes
    }  # fmt: skip


def _results(
    run: Path, model: Any, data: Path | None, vectors: str | None, options: dict
) -> Iterable[str]:
    from fastrnn.models import LanguageModel, Tagger

    if model != "Tagger" and data is not None:
        raise ValueError(f"--data is for taggers; {run} holds another model")
    if not (run / "weights.safetensors").is_file():  # not evaluated yet
        return
    if model == "LanguageModel":
        text = "The " + LanguageModel.load(run).sample(600, prime="The ", temperature=0.7, seed=0)
        yield f"<h2>A sample, at temperature 0.7</h2><pre>{html.escape(text)}</pre>"
    data = data or options.get("dev")
    if model == "Tagger" and data is not None:
        from fastrnn.metrics import report

        known = {"token_column": 0, "tag_column": -1, "feature_columns": ""} | options
        columns = [known[name] for name in ("token_column", "tag_column", "feature_columns")]
        tagger = Tagger.load(run, vectors=vectors)
        scores = report(tagger.evaluate(*read_tagged(data, *columns)))
        yield f"<h2>Entities in {html.escape(str(data))}</h2><pre>{html.escape(scores)}</pre>"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(str(k))}<td>{html.escape(f'{v}'[:500])}" for k, v in rows
    )
    return f"<table>{cells}</table>"
