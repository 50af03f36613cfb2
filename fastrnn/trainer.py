"""The training loop. It does no mathematics: the model computes gradients, the optimizer updates.

A run is a folder with these files:

    history.jsonl            one line per step, see `Trainer`
    .lock                    locked while a process trains here
    checkpoint.safetensors   everything needed to resume, bit for bit
    weights.safetensors      the best weights so far (the latest if nothing is evaluated)
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from fastrnn import checks
from fastrnn.checkpoint import load_arrays, only_one, save_arrays, write_bytes
from fastrnn.distributed import Group
from fastrnn.distributed.sharded import ShardedSteps
from fastrnn.optim import Constant, Optimizer, ReduceOnPlateau
from fastrnn.steps import Data, Model, Steps, part, tables_of
from fastrnn.types import Path as FilePath

SMOOTHING = 0.95  # decay of the smoothed loss, which averages about the last 20 batches


_LINE = ("step", "epoch", "seconds", "loss", "smoothed", "grad_norm", "lr", "items", "epoch_loss")


class Diverged(FloatingPointError):
    """The loss or the gradient is not finite."""


def take_weights(model: Model, weights: Mapping[str, np.ndarray]) -> None:
    """Set all trained arrays from the weights `Trainer` saves; nothing changes unless all fit.

    Raises
    ------
    ValueError
        A name is missing or unknown, or a shape differs.
    """
    for name, table in tables_of(model).items():
        if name not in weights or weights[name].shape != table.shape:
            raise ValueError(f"{name} must have shape {table.shape}")
    rest = {name: array for name, array in weights.items() if name not in tables_of(model)}
    model.parameters.load_state_dict(rest)
    for name, table in tables_of(model).items():
        table[:] = weights[name]


class Trainer:
    """Trains a model, keeps its best weights, and can be interrupted at any time.

    Parameters
    ----------
    model : Model
    optimizer : Optimizer
    data : Data
    run : path
        The run's folder; created if missing.
    max_norm : float, optional
        Gradients with a larger norm are scaled down to this norm.
    schedule : schedule of `fastrnn.optim`, optional
        Learning-rate schedule; constant by default.
    evaluate : callable, optional
        Called without arguments; returns the value that decides which weights are best.
    metric : str, default "valid_loss"
        Name of this value in the history.
    maximize : bool, default False
        Whether a larger value is better.
    evaluate_every : int, optional
        Steps between evaluations; by default (or 0) one epoch.
    patience : int, optional
        Stop after this many evaluations without a new best; by default (or 0) never.
    checkpoint_every : int, default 100
        Steps between checkpoints; one is also written after the first step, at each evaluation and
        at the end.
    progress : bool, optional
        Show a progress bar; by default only on a terminal.
    report : callable, optional
        Called with a line of text every ``evaluate_every`` steps and at the last step.
    unit : str, default "nats"
        Unit of the model's loss, for the progress bar and ``report``.
    group : fastrnn.distributed.Group, optional
        The processes that train together, each of which must make the same calls; and into how
        many shards batches are split. By default one of each. Rank 0 writes the files, shows the
        progress and decides about the best weights.

    Attributes
    ----------
    step : int
        Steps done so far, including those before a resume.
    best : float or None
        The best value so far.
    stopped : str
        Why `train` returned: "done", "early" or "interrupted".

    Notes
    -----
    Each line of the history has ``step`` (from 1), ``epoch`` (from 1), ``seconds`` (training
    time so far, without evaluation), ``loss`` (of the batch), ``smoothed`` (exponential moving
    average of the losses), ``grad_norm`` (before clipping), ``lr`` and ``items`` (the number
    that the loss is averaged over). The last step of an epoch adds ``epoch_loss`` (mean over the
    epoch), an evaluation adds the metric.
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        data: Data,
        run: FilePath,
        *,
        max_norm: float | None = None,
        schedule: Constant | None = None,
        evaluate: Callable[[], float] | None = None,
        metric: str = "valid_loss",
        maximize: bool = False,
        evaluate_every: int | None = None,
        patience: int | None = None,
        checkpoint_every: int = 100,
        progress: bool | None = None,
        report: Callable[[str], None] | None = None,
        unit: str = "nats",
        group: Group | None = None,
    ):
        if max_norm is not None:
            checks.above_zero("max_norm", max_norm)
        checks.has("model", model, "parameters", "rng", "loss_and_gradient", "carried", "carry")
        checks.has("data", data, "__len__", "batches")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        if not isinstance(schedule, Constant | None):
            raise TypeError(f"schedule must be a schedule, got {type(schedule).__name__}")
        for name, function in ("evaluate", evaluate), ("report", report):
            if function is not None:
                checks.has(name, function, "__call__")
        for name, text in ("metric", metric), ("unit", unit):
            if not isinstance(text, str):
                raise TypeError(f"{name} must be a str, got {type(text).__name__}")
        for name, count in ("evaluate_every", evaluate_every), ("patience", patience):
            if count is not None:
                checks.integer(name, count, 0)
        if not len(data):
            raise ValueError("data has no batches")
        if metric in _LINE:
            raise ValueError(f"metric must not be one of {', '.join(_LINE)}; got {metric!r}")
        if evaluate is None and (
            patience or isinstance(schedule, ReduceOnPlateau) or optimizer.needs_evaluations
        ):
            raise ValueError("patience, ReduceOnPlateau and ASGD without start need evaluate")
        self.model, self.optimizer, self.data = model, optimizer, data
        self.run = checks.path("run", run)
        self.max_norm, self.schedule = max_norm, schedule or Constant()
        self.evaluate, self.metric = evaluate, metric
        self.maximize = checks.flag("maximize", maximize)
        self.evaluate_every, self.patience = evaluate_every or len(data), patience or None
        self.checkpoint_every = checks.integer("checkpoint_every", checkpoint_every)
        if progress is not None:
            checks.flag("progress", progress)
        self.progress, self.report, self.unit = progress, report, unit
        group = Group.given(group)
        self._steps = Steps(model, optimizer, data)
        if group.shards > 1:
            self._steps = ShardedSteps(model, optimizer, data, group)
        if not self._steps.lead:
            self.progress, self.report = False, None
        self.step = 0
        self.best: float | None = None
        self.stopped = ""
        self._seconds, self._smoothed, self._since_best = 0.0, 0.0, 0
        self._epoch_sum, self._epoch_items, self._items = 0.0, 0, 0
        self._saved_step: int | None = None
        self._last_weights: dict[str, np.ndarray] | None = None
        self._asked_to_stop = False
        self._file: IO[str]

    @property
    def history(self) -> Path:
        return self.run / "history.jsonl"

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run."""
        return self.history.exists() and self.history.stat().st_size > 0

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoint.safetensors"

    @property
    def weights(self) -> Path:
        return self.run / "weights.safetensors"

    @property
    def rate(self) -> float:
        """Items per second, over all steps so far."""
        return self._items / max(self._seconds, 1e-9)

    @property
    def sent(self) -> int:
        """Bytes that this process has sent to others in training steps, see `Steps`."""
        return self._steps.sent

    def train(self, *, steps: int | None = None, epochs: int | None = None) -> None:
        """Train up to ``steps`` or ``epochs`` in total, then load the best weights.

        A later call with a larger total continues from the last weights, not the best.

        Raises
        ------
        Diverged
            The loss or gradient is not finite; the message names the step and the last checkpoint.
        ValueError
            Neither or both of ``steps`` and ``epochs`` are given, or the folder holds another run
            or is in use by another process.
        """
        if (steps is None) == (epochs is None):
            raise ValueError("give either steps or epochs")
        if epochs is not None:
            steps = checks.integer("epochs", epochs, 0) * len(self.data)
        total = checks.integer("steps", steps, 0)
        if self._last_weights is not None:
            take_weights(self.model, self._last_weights)
        self.stopped, self._asked_to_stop = "", False
        with ExitStack() as files:
            self._steps.share(lambda: self._open(files))
            files.enter_context(self._listening())
            bar = files.enter_context(
                tqdm(
                    total=total,
                    initial=self.step,
                    unit="step",
                    disable=None if self.progress is None else not self.progress,
                )
            )
            self._check_patience()
            while self.step < total and not self.stopped:
                epoch, done = divmod(self.step, len(self.data))
                before = self.step
                for batch in self._steps.batches(epoch, done):
                    line = self._train_batch(batch, epoch)
                    self._after_step(line, bar, last=self.step >= total)
                    if self._steps.lead:
                        self._file.write(json.dumps(line) + "\n")
                    if self._saved_step != self.step and (
                        self.stopped
                        or self._saved_step is None  # soon, so that a crash loses little
                        or self.step >= total
                        or self.metric in line
                        or self.step % self.checkpoint_every == 0
                    ):
                        if self._steps.lead:  # the history must not lag the checkpoint
                            os.fsync(self._file.fileno())
                        self.save()
                    if self.stopped or self.step >= total:
                        break
                if self.step == before:
                    raise ValueError(f"data gave none of its {len(self.data)} batches")
        self.stopped = self.stopped or "done"
        self._last_weights = self._weights()
        if self.best is None:
            with self._steps.averaged():
                self._save_best({})
        take_weights(self.model, self._steps.share(lambda: load_arrays(self.weights)[0]))

    def _open(self, files: ExitStack) -> None:
        """Open the run's folder, for the lead alone."""
        if not self.step and self.begun:
            raise ValueError(f"{self.run} holds a run: call resume first, or choose another folder")
        self.run.mkdir(parents=True, exist_ok=True)
        if self.history.exists() and not self.history.is_file():
            raise ValueError(f"{self.history} is not a file")
        files.enter_context(only_one(self.run))
        history = open(self.history, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._file = files.enter_context(history)
        files.callback(vars(self).pop, "_file")

    def _save_best(self, notes: dict) -> None:
        if self._steps.lead:
            save_arrays(self.weights, self._weights(), notes)

    def _weights(self) -> dict[str, np.ndarray]:
        """A copy of all trained arrays."""
        tables = {name: table.copy() for name, table in tables_of(self.model).items()}
        return self.model.parameters.state_dict() | tables

    def _train_batch(self, batch, epoch: int) -> dict:
        started = time.perf_counter()
        lr = self.optimizer.lr * self.schedule.factor(self.step) * self._steps.rate(batch)
        try:
            loss, norm, items, stop = self._steps.step(
                batch, lr, self.max_norm, lambda: self._asked_to_stop
            )
        except FloatingPointError as error:
            raise self._diverged(str(error)) from None
        if stop:
            self.stopped = "interrupted"
        self.step += 1
        elapsed = time.perf_counter() - started
        self._seconds += elapsed
        self._smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * loss
        self._epoch_sum += loss * items
        self._epoch_items += items
        self._items += items
        return {
            "step": self.step,
            "epoch": epoch + 1,
            "seconds": round(self._seconds, 6),
            "loss": loss,
            "smoothed": self._smoothed / (1 - SMOOTHING**self.step),
            "grad_norm": norm,
            "lr": lr,
            "items": items,
        }

    def _after_step(self, line: dict, bar, *, last: bool) -> None:
        if self.step % len(self.data) == 0:
            line["epoch_loss"] = self._epoch_sum / max(self._epoch_items, 1)
            self._epoch_sum, self._epoch_items = 0.0, 0
        regular = self.step % self.evaluate_every == 0
        if self.evaluate and (regular or last):
            with self._steps.averaged():
                value = float(self.evaluate())
                value, stop = self._steps.share(lambda: (value, self._asked_to_stop))
                line[self.metric] = value
                self._compare(value, regular)
            if stop:
                self.stopped = "interrupted"
        loss = f"loss {line['smoothed']:.3f} {self.unit}".rstrip()
        if self.report and (regular or last):
            shown = ""
            if self.metric in line:
                best = "*" if line[self.metric] == self.best else " "
                shown = f"  {self.metric} {line[self.metric]:.3f} {best}"
            self.report(f"step {self.step:>6}  {loss}{shown}  {self._seconds:.0f} s")
        best = "" if self.best is None else f", best {self.metric} {self.best:.3f}"
        bar.set_postfix_str(f"{loss}{best}, {self.rate:,.0f} items/s", refresh=False)
        bar.update()

    def _compare(self, value: float, regular: bool) -> None:
        sign = -1.0 if self.maximize else 1.0
        if math.isfinite(value) and (self.best is None or sign * value < sign * self.best):
            self.best, self._since_best = value, 0
            notes = {"step": self.step, self.metric: value}
            self._save_best(notes)
        elif regular:
            self._since_best += 1
        if regular:  # the extra one at the end of a run must not affect a longer run
            self.schedule.observe(sign * value)
            self.optimizer.observe(sign * value)
            self._check_patience()

    def _check_patience(self) -> None:
        if self.patience and self._since_best >= self.patience:
            self.stopped = self.stopped or "early"

    def _diverged(self, what: str) -> Diverged:
        if self._saved_step is None:
            good = "there is no checkpoint yet"
        else:
            good = f"the last good checkpoint is {self.checkpoint} (step {self._saved_step})"
        return Diverged(f"{what} at step {self.step + 1}; {good}")

    @contextmanager
    def _listening(self):
        """On SIGINT (Ctrl-C) or SIGTERM, finish the step and save; a second Ctrl-C raises."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number, frame):
            if self._asked_to_stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._asked_to_stop = True

        before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def save(self) -> None:
        """Write the checkpoint."""
        arrays = self._steps.state() | {f"parameters.{k}": v for k, v in self._weights().items()}
        notes = {
            "step": self.step,
            "best": self.best,
            "rng": self.model.rng.bit_generator.state,
            "schedule": self.schedule.state(),
            "counters": {name: getattr(self, name) for name in self._COUNTERS},
            "shards": self._steps.shards,
        }
        if self._steps.lead:
            save_arrays(self.checkpoint, arrays, notes)
        self._saved_step = self.step

    _COUNTERS = ("_seconds", "_smoothed", "_since_best", "_epoch_sum", "_epoch_items", "_items")

    def resume(self) -> bool:
        """Restore the run's checkpoint and return True, or return False if there is none.

        History lines after the checkpoint (all lines if there is none) are dropped, as these steps
        will be done again.

        Raises
        ------
        ValueError
            The checkpoint is damaged or belongs to another model, or another process is training
            in the folder.
        """
        with ExitStack() as files:
            saved = self._steps.share(lambda: self._read(files))
            if saved is None:
                return False
            self._restore(*saved)
            self._steps.share(self._cut_history)
        return True

    def _read(self, files: ExitStack) -> tuple[dict[str, np.ndarray], dict] | None:
        """The checkpoint, if there is one, for the lead alone."""
        if self.run.is_dir():
            files.enter_context(only_one(self.run))
        if self.checkpoint.exists():
            return load_arrays(self.checkpoint)
        if self.history.exists():
            write_bytes(self.history, b"")
        if self.report:
            self.report("there is no checkpoint yet: training begins at the first step")
        return None

    def _restore(self, arrays: dict[str, np.ndarray], notes: dict) -> None:
        shards = notes.get("shards", 1)
        if shards != self._steps.shards:
            raise ValueError(
                f"{self.checkpoint} is of a run in {shards} shards, not {self._steps.shards}"
            )
        try:
            take_weights(self.model, part(arrays, "parameters."))
            self._steps.load(arrays)
            self.model.rng.bit_generator.state = notes["rng"]
            self.schedule.load(notes["schedule"])
            self.step, self.best = notes["step"], notes["best"]
            for name in self._COUNTERS:
                setattr(self, name, notes["counters"][name])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{self.checkpoint} belongs to another model or setting: {error}"
            ) from error
        self._saved_step = self.step
        self._last_weights = None

    def _cut_history(self) -> None:
        """Let the history end with the checkpoint."""
        lines = self.history.read_bytes().splitlines(keepends=True) if self.history.exists() else []
        write_bytes(self.history, b"".join(lines[: self.step]))
