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

        picture, drawn = out or runs[0] / "curve.png", -1.0
        with contextlib.suppress(*[KeyboardInterrupt] * watch):
            while drawn < 0 or watch:
                histories = [run / "history.jsonl" for run in runs]
                times = [h.stat().st_mtime for h in histories if h.exists()]
                changed = max(times, default=-1.0 if watch else 0.0)  # it may not have begun
                if changed > drawn:
                    typer.echo(plot_runs(runs, picture, against=against, title=title))
                    drawn = changed
                time.sleep(every * watch)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    data: Annotated[
        Path | None, typer.Option(help="Score a tagger on it; by default the run's --dev.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="By default report.html in the folder.")] = None,
) -> None:
    """Write a run's curve, settings and results into one HTML file."""
    with clear_errors():
        from fastrnn.checkpoint import write_bytes

        page = out or run / "report.html"
        write_bytes(page, _page(run, data).encode())
        typer.echo(page)


def _page(run: Path, data: Path | None) -> str:
    from fastrnn.checkpoint import load_json
    from fastrnn.plots import plot_runs, read_history

    lines = read_history(run)
    config = load_json(run / "config.json") if (run / "config.json").is_file() else {}
    options = load_json(run / "options.json") if (run / "options.json").is_file() else {}
    settings = options or config.get("params", config)
    with tempfile.TemporaryDirectory() as folder:
        picture = plot_runs([run], Path(folder) / "curve.png").read_bytes()
    last = lines[-1]
    facts = {
        "steps": f"{last['step']:,}", "epochs begun": last["epoch"],
        "seconds of training": f"{last['seconds']:,.1f}",
        "items per second": f"{sum(x['items'] for x in lines) / max(last['seconds'], 1e-9):,.0f}",
        "last loss, smoothed (nats)": f"{last['smoothed']:.4f}",
        "largest gradient norm": f"{max(x['grad_norm'] for x in lines):.3g}",
    } | _best(lines)  # fmt: skip
    name = html.escape(str(run))
    image = base64.b64encode(picture).decode()
    parts = [
        f"<h1>{name}</h1>", _table(facts.items()),
        f'<h2>Curve</h2><img alt="learning curve" src="data:image/png;base64,{image}">',
        *_results(run, config.get("model"), data or options.get("dev"), options),
        "<h2>Settings</h2>", _table(settings.items()),
    ]  # fmt: skip
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _best(lines: list[dict]) -> dict[str, str]:
    """The best evaluation, as `Trainer` chose it."""
    found = {}
    for name, choose in ("valid_f1", max), ("valid_bpc", min), ("valid_loss", min):
        points = [(line[name], line["step"]) for line in lines if name in line]
        if points:
            value = choose(value for value, _ in points)
            step = next(s for v, s in points if v == value)
            found[f"best {name}"] = f"{value:.4f} (step {step:,})"
    return found


def _results(run: Path, model: Any, data: Any, options: dict) -> Iterable[str]:
    from fastrnn.models import LanguageModel, Tagger

    if model == "LanguageModel":
        text = "The " + LanguageModel.load(run).sample(600, prime="The ", temperature=0.7, seed=0)
        yield f"<h2>A sample, at temperature 0.7</h2><pre>{html.escape(text)}</pre>"
    elif model == "Tagger" and data is not None:
        from fastrnn.metrics import report

        from .tagger import read_tagged

        columns = options.get("token_column", 0), options.get("tag_column", -1)
        scores = report(Tagger.load(run).evaluate(*read_tagged(data, *columns)))
        yield f"<h2>Entities in {html.escape(str(data))}</h2><pre>{html.escape(scores)}</pre>"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(str(k))}<td>{html.escape(f'{v}'[:500])}" for k, v in rows
    )
    return f"<table>{cells}</table>"
