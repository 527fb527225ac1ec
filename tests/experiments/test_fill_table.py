"""Missing cells of tables: what is known stays, what is missing follows from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fill_table


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["fill_table.py", *map(str, words)])
    fill_table.main()


def test_only_what_is_asked_for_is_estimated_and_only_what_is_known_is_told():
    network = fill_table.make_network(3, width=8)
    params = network.init(jax.random.key(0))
    x, t = jax.random.normal(jax.random.key(1), (2, 3)), jnp.full(2, 0.4)
    row, known = jnp.array([[1.0, 2.0, 0.0]] * 2), jnp.array([[True, True, False]] * 2)
    apply = jax.jit(
        lambda x, row, keys=None: network.apply(params, x, t, row=row, known=known, keys=keys)
    )
    estimate = apply(x, row)
    np.testing.assert_array_equal(estimate[:, :2], row[:, :2])
    assert np.all(estimate[:, 2] != 0.0)
    np.testing.assert_array_equal(apply(x.at[:, :2].add(1.0), row), estimate)
    assert np.all(apply(x, row.at[:, 0].add(1.0))[:, 2] != estimate[:, 2])
    # in training the missing cell is neither asked for nor told
    keys = jax.random.split(jax.random.key(2), 2)
    trained = apply(x, row, keys)
    np.testing.assert_array_equal(trained[:, 2], row[:, 2])
    np.testing.assert_array_equal(apply(x, row.at[:, 2].set(9.0), keys)[:, :2], trained[:, :2])


def test_a_column_that_follows_from_another_is_filled_from_it(monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    first = rng.normal(5.0, 2.0, 200)
    cells = np.stack([first, 30.0 - 10.0 * first + rng.normal(0.0, 2.0, 200)], axis=1)
    lines = [
        ["a", "b"],
        *([f"{a:.6g}", "" if i % 10 == 0 else f"{b:.6g}"] for i, (a, b) in enumerate(cells)),
    ]
    (tmp_path / "in.csv").write_text("\n".join(map(",".join, lines)))
    out = tmp_path / "out.csv"
    call(monkeypatch, "--csv", tmp_path / "in.csv", "--output", out, "--train-steps", 400,
         "--num-draws", 8, "--num-steps", 10, "--width", 32)  # fmt: skip
    assert "Wrote 20 means" in capsys.readouterr().out
    filled = fill_table.read_table(out).cells
    spread = np.loadtxt(tmp_path / "out_std.csv", delimiter=",", skiprows=1)
    missing = np.arange(200) % 10 == 0
    np.testing.assert_allclose(filled[~missing], cells[~missing], rtol=1e-5)
    np.testing.assert_allclose(filled[:, 0], cells[:, 0], rtol=1e-5)
    # the column varies by 20, what the other column leaves of it by 2
    error = np.sqrt(np.mean((filled[missing, 1] - cells[missing, 1]) ** 2))
    assert error < 8.0
    assert np.all(spread[missing, 1] > 0.0)
    assert np.all(spread[~missing] == 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "at least two rows"),
        ("a,b\n1,2\n3\n", "Line 3 of .* has 1 cells"),
        ("a,b\n1,2\n3,red\n", "'red' in the column 'b'"),
        ("a,b\n1,2\n3,2\n,2\n", "column 'b' has less than two"),
        ("a,b\n1,2\n\n3,inf\n", "Line 4 of .* 'inf' in the column 'b'"),
        ("a,b\n1,2\n3,4\n", "in.csv misses nothing"),
    ],
)
def test_tables_that_cannot_be_filled_are_refused(monkeypatch, tmp_path, text, message):
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        call(monkeypatch, "--csv", tmp_path / "in.csv", "--output", tmp_path / "out.csv")


def test_settings_that_cannot_be_are_refused_before_anything_is_learned(monkeypatch, tmp_path):
    monkeypatch.setattr(fill_table, "fill", None)
    output = ("--output", tmp_path / "out.csv")
    for flag, value in (("--num-draws", 1), ("--train-steps", 0), ("--width", 0)):
        with pytest.raises(ValueError, match=f"{flag} is {value}; it must be at least"):
            call(monkeypatch, flag, value, *output)
    with pytest.raises(ValueError, match="wine misses nothing"):
        call(monkeypatch, "--hide", 0, *output)


def test_what_is_known_comes_back_as_it_was_written(tmp_path):
    lines = "größe,b\n123456789012345,0.1\n-1e-300,3.14159265358979\n".splitlines()
    (tmp_path / "in.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    table = fill_table.read_table(tmp_path / "in.csv")
    fill_table.write_table(tmp_path / "out.csv", table)
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines() == lines
