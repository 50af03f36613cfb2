"""The style of all pictures: one palette, and SVG files that also suit a dark page."""

from pathlib import Path
from typing import Any

from fastrnn.extras import needs

# Okabe & Ito (2008): told apart by those who are colour-blind, on a light and on a dark page.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f")
INK = "#24292f"  # of text, axes and grids
_THEMES = (
    f"<style>svg{{--ink:{INK}}}@media(prefers-color-scheme:dark){{svg{{--ink:#d7dde4}}}}</style>"
)
_STYLE: dict[str, Any] = {
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK,
    "axes.spines.right": False, "axes.spines.top": False, "axes.axisbelow": True,
    "axes.titlesize": "medium", "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "grid.color": INK, "grid.alpha": 0.2, "legend.frameon": False, "lines.markersize": 5,
    "figure.facecolor": "none", "axes.facecolor": "none", "font.family": "sans-serif",
    "svg.fonttype": "none", "svg.hashsalt": "fastrnn",
}  # fmt: skip


class Picture:
    """A matplotlib figure in this style; ``with`` applies the style to what is drawn inside.

    Parameters
    ----------
    width, height : float
        In inches.

    Attributes
    ----------
    figure : matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    """

    def __init__(self, width: float, height: float):
        try:
            import matplotlib
            from cycler import cycler
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(needs("plots need matplotlib", "plot")) from None
        style = _STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}
        self._context = matplotlib.rc_context(style)
        self._size, self._figure, self._canvas = (width, height), Figure, FigureCanvasAgg

    def __enter__(self) -> "Picture":
        self._context.__enter__()
        self.figure: Any = self._figure(figsize=self._size, layout="constrained")
        self._canvas(self.figure)
        return self

    def __exit__(self, *error) -> None:
        self._context.__exit__(*error)

    def save(self, out: Path) -> None:
        """Write the file; its suffix says which kind. SVG has a transparent background."""
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix != ".svg":
            self.figure.savefig(out, dpi=120, facecolor="white")
            return
        self.figure.savefig(out, metadata={"Date": None, "Creator": None})
        text = out.read_text(encoding="utf-8").replace(INK, "var(--ink)")
        head, mark, rest = text.partition("<defs>")
        out.write_text(f"{head}{_THEMES}{mark}{rest}", encoding="utf-8")
