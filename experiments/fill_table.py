"""Fill the missing cells of a table of numbers: many plausible fillings, their mean and spread.

    python experiments/fill_table.py --csv FILE.csv --output filled.csv
    python experiments/fill_table.py --table wine --hide 0.2

A small network learns to denoise cells of a row that are asked for, told the cells that are known,
from the table itself: in training some of the known cells are asked for. Empty cells (or nan) are
then drawn; the output holds their means, FILE_std.csv beside it how much the draws differ. With
--hide some known cells are left out, which tells how good the filling is.

Source: TabCSDI, arXiv:2210.17128, after CSDI, arXiv:2107.03502, section 4.
"""

import csv
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from sklearn import datasets

import diffjax as dj
from choices import choose
from cli import check_counts, parse_args, prepare_output, run_script
from diffjax import losses
from diffjax.core.levels import expand_level
from diffjax.networks import Functional
from diffjax.training.manifest import whole_file

TABLES = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
    "breast_cancer": datasets.load_breast_cancer,
}
SCHEDULE = dj.cosine()


@dataclass(frozen=True, kw_only=True)
class Args:
    """Fill the missing cells of a table of numbers."""

    csv: Path | None = None
    """the table, a line of names first; cells that are empty or nan are missing"""
    table: str = "wine"
    """without --csv, one of scikit-learn's: iris, wine, diabetes, breast_cancer"""
    hide: float | None = None
    """share of the known cells to leave out and be tested on; by default 0.2 of scikit-learn's
    tables, none of yours"""
    num_draws: int = 50
    """fillings that are drawn, at least 2"""
    num_steps: int = 30
    """steps from noise to cells"""
    train_steps: int = 500
    """training steps, with 128 rows each; too many learn small tables by heart, and the draws
    differ too little"""
    width: int = 128
    """units of the network's layers"""
    seed: int = 0
    """of hidden cells, initial weights and all noise"""
    output: Path = Path("filled.csv")
    """FILE.csv"""


class Table(NamedTuple):
    """Names of the columns, and cells [N, D] float64, NaN where one is missing."""

    names: list[str]
    cells: np.ndarray


def read_table(path: Path) -> Table:
    """Read a CSV file in UTF-8.

    Raises:
      ValueError: it has no rows, a row of another length, a cell that is no number, or a column
        that says nothing.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        lines = [(reader.line_num, line) for line in reader if line]
    if len(lines) < 3:
        raise ValueError(f"{path} has {len(lines)} lines; needed are names and at least two rows.")
    (_, names), *rows = lines
    cells = np.full((len(rows), len(names)), np.nan)
    for i, (number, row) in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(
                f"Line {number} of {path} has {len(row)} cells, but there are {len(names)} names."
            )
        for j, text in enumerate(row):
            cells[i, j] = read_cell(text)
            if np.isinf(cells[i, j]):
                raise ValueError(
                    f"Line {number} of {path} has {text!r} in the column {names[j]!r}; cells are "
                    "finite numbers, or empty where they are missing."
                )
    return Table(names, check_columns(cells, names))


def read_cell(text: str) -> float:
    """The number in a cell, NaN where it is missing, infinity for what is no number."""
    try:
        return float(text.strip() or "nan")
    except ValueError:
        return float("inf")


def check_columns(cells: np.ndarray, names: list[str]) -> np.ndarray:
    """Refuse columns of which less than two different numbers are known."""
    for column, name in zip(cells.T, names):
        if len(np.unique(column[np.isfinite(column)])) < 2:
            raise ValueError(f"The column {name!r} has less than two different numbers.")
    return cells


def write_table(path: Path, table: Table) -> None:
    with whole_file(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.names)
        # numbers of up to 15 digits come back as they were
        writer.writerows([f"{cell:.15g}" for cell in row] for row in table.cells)


def make_network(columns: int, width: int) -> Functional:
    """The network, `apply(params, x, t, *, row, known, keys=None) -> estimate of x0`, [B, D].

    It is told the cells of `row` that are known, and estimates the others; where keys are given,
    in training, a random share of the known ones, and all else comes back as it is in `row`, so
    that a loss sees nothing but the cells that were asked for. For cells of variance one

        x0 = alpha x - sigma F(x, row, known, t)
    """
    sizes = [4 * columns + 8, width, width, columns]

    def init(key: Array) -> Any:
        keys = jax.random.split(key, 3)
        make = jax.nn.initializers.lecun_normal()
        return {
            str(i): {"kernel": make(k, pair), "bias": jnp.zeros(pair[1])}
            for i, (k, pair) in enumerate(zip(keys, pairwise(sizes)))
        }

    def apply(params, x, t, *, row, known, keys=None):
        asked = ~known if keys is None else known & hidden(keys, columns)
        told = known & ~asked
        waves = t[:, None] * jnp.pi * jnp.arange(1, 5)
        inputs = [jnp.where(asked, x, 0.0), jnp.where(told, row, 0.0), asked, told]
        h = jnp.concatenate([*inputs, jnp.sin(waves), jnp.cos(waves)], axis=1)
        for layer in ("0", "1"):
            h = jax.nn.silu(h @ params[layer]["kernel"] + params[layer]["bias"])
        level = expand_level(SCHEDULE(t), x)
        estimate = level.alpha * x - level.sigma * (h @ params["2"]["kernel"] + params["2"]["bias"])
        return jnp.where(asked, estimate, row)

    return Functional(init, apply)


def hidden(keys: Array, columns: int) -> Array:
    """Which cells are asked for in training, [B, D]: a share that differs from row to row."""

    def draw(key: Array) -> Array:
        share_key, key = jax.random.split(key)
        return jax.random.uniform(key, (columns,)) < jax.random.uniform(share_key)

    return jax.vmap(draw)(keys)


def learn(key: Array, network: Functional, rows: Array, known: Array, num_steps: int) -> Any:
    """Train on the known cells of rows [N, D], with batches of 128."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    loss = dj.diffusion_loss(network.apply, SCHEDULE, dj.x0, weight=losses.snr_plus_one)
    step = dj.make_train_step(loss, optimizer)
    init_key, key = jax.random.split(key)

    def improve(state, i):
        pick_key, step_key = jax.random.split(jax.random.fold_in(key, i))
        chosen = jax.random.randint(pick_key, (128,), 0, len(rows))
        batch = {"x0": rows[chosen], "row": rows[chosen], "known": known[chosen]}
        return step(state, batch, step_key)[0], None

    state = dj.init_train_state(network.init(init_key), optimizer)
    return lax.scan(improve, state, jnp.arange(num_steps))[0].params


def fill(args: Args, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the fillings, [N, D] each; known cells as they are, and 0."""
    mean, std = np.nanmean(cells, axis=0), np.nanstd(cells, axis=0)
    known = jnp.asarray(~np.isnan(cells))
    rows = jnp.asarray(np.nan_to_num((cells - mean) / std), jnp.float32)
    network = make_network(cells.shape[1], args.width)
    levels = SCHEDULE(dj.trailing(args.num_steps))

    @jax.jit
    def run(key, rows, known):
        learn_key, start_key, key = jax.random.split(key, 3)
        params = learn(learn_key, network, rows, known, args.train_steps)
        denoise = dj.make_denoiser(network.apply, params, dj.x0, row=rows, known=known)

        def draw(key):
            x = dj.initial_noise(jax.random.fold_in(start_key, 1), rows.shape, levels)
            return dj.sample(key, x, denoise, dj.ddim(eta=1.0), levels)

        return dj.uncertainty_map(draw, key, args.num_draws)

    drawn = run(jax.random.key(args.seed), rows, known)
    filled = np.where(known, cells, np.asarray(drawn.mean, np.float64) * std + mean)
    return filled, np.where(known, 0.0, np.asarray(drawn.std, np.float64) * std)


def report(truth: np.ndarray, left: np.ndarray, filled: np.ndarray, spread: np.ndarray) -> str:
    """Errors on cells that were hidden, in standard deviations of their columns."""
    tested = np.isnan(left) & ~np.isnan(truth)
    scale = np.broadcast_to(np.nanstd(left, axis=0), truth.shape)[tested]
    rms = lambda values: float(np.sqrt(np.mean((values[tested] / scale) ** 2)))
    within = np.abs(filled - truth)[tested] < 2.0 * spread[tested]
    return (
        f"{tested.sum()} hidden cells: error of the mean of the draws {rms(filled - truth):.3f}, "
        f"of the column's mean {rms(np.nanmean(left, axis=0) - truth):.3f} (root mean squares, in "
        f"standard deviations of the column); spread of the draws {rms(spread):.3f}, "
        f"{100 * within.mean():.0f} % of the cells within twice theirs"
    )


def main() -> None:
    args = parse_args(Args, description=__doc__)
    share = (0.2 if args.csv is None else 0.0) if args.hide is None else args.hide
    if not 0.0 <= share < 1.0:
        raise ValueError(f"--hide is {share}; it must be a share from 0 to less than 1.")
    check_counts(args, "num_draws", least=2)
    check_counts(args, "num_steps", "train_steps", "width")
    output = prepare_output(args.output, ".csv")
    if args.csv is None:
        found = choose("table", args.table, TABLES)()
        table = Table(list(map(str, found.feature_names)), np.asarray(found.data, np.float64))
    else:
        table = read_table(args.csv)
    hide = np.random.default_rng(args.seed).random(table.cells.shape) < share
    left = check_columns(np.where(hide, np.nan, table.cells), table.names)
    if not np.isnan(left).any():
        name = args.table if args.csv is None else args.csv
        raise ValueError(f"{name} misses nothing; --hide 0.2 leaves out a part to test on.")
    filled, spread = fill(args, left)
    write_table(output, Table(table.names, filled))
    beside = output.with_name(f"{output.stem}_std.csv")
    write_table(beside, Table(table.names, spread))
    if share:
        print(report(table.cells, left, filled, spread))
    print(f"Wrote {np.isnan(left).sum()} means to {output} and their spreads to {beside.name}")


if __name__ == "__main__":
    run_script(main)
