"""The arguments of the kernels, as records: plain tuples to Python, several arguments to Numba."""

from typing import NamedTuple

from fastrnn.kernels.signature import A2, D1, D2, D3, F1, F2, F3, I1, P3, S2, B, F, I

# Time loops

# What the accumulators of row p start from: row 0 of `Init.values` (the bias), row ``ids[p]`` (a
# table of bias + column of W_ih, for one-hot input), or row p (bias + W_ih x, computed before).
BIAS, TABLE, PROJECTED = range(3)


class Geometry(NamedTuple):
    """The packed batch, and where states lie."""

    batch_sizes: I1  # [T]
    offsets: I1  # [T + 1]
    state_offsets: I1  # [T + 1]
    reverse: B  # the direction from each sequence's end to its start


class Projection(NamedTuple):
    """The product with W_ih that is added in the loop."""

    x: A2  # [N, >= I]
    depth: I  # I, or 0
    panels: P3  # [P, I, .], layouts.py's forward layout


class Recurrence(NamedTuple):
    """The product with W_hh."""

    h: A2  # [., >= H]: what is multiplied; rows as in the states, or see `Work.own`
    panels: P3  # [P, H, .], layouts.py's forward layout


class Init(NamedTuple):
    """The start of every sum: the vectors at ``offset + row * stride + panel * panel_stride``.

    ``row`` is that of the packed batch for PROJECTED and ``ids[row]`` for TABLE; for BIAS the
    stride is 0, as all rows start alike.
    """

    kind: I  # BIAS, TABLE or PROJECTED, which says what ``row`` is
    values: F1  # flat; for PROJECTED perhaps the buffer of the gates, each read before written
    ids: I1  # [N] for TABLE, else empty
    offset: I
    stride: I
    panel_stride: I


class Masks(NamedTuple):
    """Zoneout and recurrent dropout; empty arrays for a layer without."""

    keep: F2  # [N or 1, states * Hp]: the share of each new state that is kept
    keep_stride: I  # from row to row; 0 where one row serves all
    recurrent: F2  # [B, Hp]: factors of h on its way to the next step


class Output(NamedTuple):
    """Where a direction's results go."""

    y: F2  # [N, >= y_offset + units]
    y_offset: I
    units: I  # H
    gates: S2  # [N, >= gates_offset + the direction's gates]
    gates_offset: I
    save: B  # write the gates


class Gradient(NamedTuple):
    """The gradients of the output of a direction and of its accumulators."""

    dy: F2  # [N, >= offset + units]
    offset: I
    units: I  # H
    dz: A2  # in the memory of the gates, whose numbers are as long


class RecurrentPanels(NamedTuple):
    """W_hh packed for dz @ W_hh, and which of the gates' columns it multiplies."""

    panels: P3  # [Q, K, 4 W], layouts.py's backward layout
    block: I  # length of a run of columns
    block_stride: I  # from run to run


class UnitGradient(NamedTuple):
    """Where each row's gradient of the per-unit parameters goes."""

    values: F2  # [N, >= offset + P * Hp]
    offset: I


class Work(NamedTuple):
    """What one thread does: rows [first, last) of the batch, some panels of the units.

    Where a slice of rows would be too low for the registers, ``parties`` threads take all rows
    and some panels each, and wait for each other once a step.
    """

    first: I
    last: I
    first_panel: I
    last_panel: I
    barrier: I1  # see barrier.py
    barrier_slot: I
    parties: I
    own: I  # in formats that quantise: from this row on, its h of the current step


# Rows


class Lengths(NamedTuple):
    """Of the sequences of a packed batch."""

    lengths: I1  # [B]
    offsets: I1  # [T + 1]


class Padded(NamedTuple):
    """How a packed batch lies in a padded array: step t of sequence b is the row
    ``b * batch_stride + t * step_stride``."""

    sorted_indices: I1  # [B]
    lengths: I1  # [B]
    offsets: I1  # [T' + 1]
    steps: I
    batch_stride: I
    step_stride: I
    by_step: B  # whether the rows of a step are neighbours, and not those of a sequence


# Matrix products

# Rows that `accumulate` takes at once: block x panel stays in the second-level cache, and fills the
# scratch of a thread.
BLOCK = 256
# Rows of a panel that `product` takes at once, for the same reason.
DEPTH = 1024


class Runs(NamedTuple):
    """Which columns of a matrix count: ``blocks`` runs of ``length``, ``stride`` apart."""

    blocks: I
    length: I
    stride: I


class Panels(NamedTuple):
    """Columns of a matrix, panel by panel: panel q begins at ``offset + q * stride``."""

    values: F2  # [N, .]
    offset: I
    stride: I
    columns: I  # how many are read or written in all


class Products(NamedTuple):
    """The same for numbers that are multiplied."""

    values: A2  # [N, .]
    offset: I
    stride: I
    columns: I


class Sums(NamedTuple):
    """The packed gradient of a weight, and the sums over the rows."""

    packed: F3  # [Q, K, v W], layouts.py's forward layout
    totals: F2  # [Q, v W]


# The linear-chain CRF


class Sequences(NamedTuple):
    scores: F2  # [N, K]
    tags: I1  # [N], or [0] where ``has_tags`` is False
    has_tags: B
    offsets: I1
    lengths: I1


class Transitions(NamedTuple):
    pair: D2  # [K, K]
    start: D1
    end: D1


class Gradients(NamedTuple):
    loss: D1  # [B]
    d_scores: D2  # [N, K]
    d_pair: D3  # [B, K, K]
    d_ends: D3  # [B, 2, K]: start and end


# Optimizers

# Partial sums have this many terms for any number of threads, so the bits do not change.
CHUNK = 1 << 14


class SGD(NamedTuple):
    scale: F
    lr: F
    momentum: F
    weight_decay: F
    nesterov: B


class Adam(NamedTuple):
    """See `AdamStep.coefficients`."""

    scale: F
    lr: F
    new1: F
    beta2: F
    new2: F
    eps: F
    l2: F
    shrink: F
    root2: F


# Unfused cells


class Block(NamedTuple):
    """An input of an elementwise function: some columns of a matrix."""

    values: F2
    offset: I  # of the first column
    step: I  # 1, or 0 where the one row serves all
