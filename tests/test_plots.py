"""Learning curves."""

import json

import numpy as np
import pytest

from fastrnn.plots import plot_runs, smooth

pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")


def test_the_smoothed_line_does_not_lag():
    """A straight line stays where it is, and a step is half way up at the step."""
    line = np.linspace(5, 1, 200)
    assert smooth(line) == pytest.approx(line)
    step = np.repeat([4.0, 2.0], 100)
    assert smooth(step)[99:101].mean() == pytest.approx(3)
    noisy = line + np.random.default_rng(0).normal(0, 0.5, 200)
    assert np.abs(smooth(noisy) - line)[10:-10].max() < 0.5
    for few in [3.0], [3.0, 1.0], [3.0, 1.0, 2.0]:
        got = smooth(np.array(few))
        assert (got[0], got[-1]) == (few[0], few[-1]) and len(got) == len(few)
    spike = np.ones(100)
    spike[20] = 1e20
    assert smooth(spike)[60:] == pytest.approx(1)


@pytest.mark.parametrize("metric, panels, label", [
    ("valid_f1", 2, "loss (nats)"), ("valid_bpc", 1, "bits per character"),
    ("accuracy", 2, "loss (nats)"), (None, 1, "loss (nats)"),
])  # fmt: skip
def test_scores_have_a_panel_of_their_own(tmp_path, metric, panels, label):
    lines = [
        {"step": k, "epoch": 1, "seconds": k / 10, "loss": 2.0 / k, "smoothed": 2.0 / k,
         "grad_norm": 1.0, "lr": 0.1, "items": 5} | ({metric: k / 10} if metric else {})
        for k in range(1, 30)
    ]  # fmt: skip
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    drawn = plot_runs([tmp_path], tmp_path / "curve.svg").read_text()
    assert drawn.count('<g id="axes_') == panels and f">{label}</text>" in drawn
    assert (">F1 (percent)</text>" in drawn) == (metric == "valid_f1")
