import pytest

from choices import DENSITIES, PREDICTIONS, build, read_choice
from diffjax.core.parameterizations import PARAMETERIZATIONS
from diffjax.core.schedules import SCHEDULES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cosine", ("cosine", {})),
        (" flow ( clock = 1000 ) ", ("flow", {"clock": 1000})),
        ("a(b=-1.5, c='x', d=None)", ("a", {"b": -1.5, "c": "x", "d": None})),
    ],
)
def test_a_choice_is_a_name_and_its_arguments(text, expected):
    assert read_choice("schedule", text) == expected


@pytest.mark.parametrize(
    "text", ["", "cosine(", "cosine(1)", "cosine(offset=x)", "a.b", "__import__('os')(a=1)", "1+1"]
)
def test_what_is_not_a_name_with_plain_values_is_refused(text):
    with pytest.raises(ValueError, match=r"schedule is .* expected NAME"):
        read_choice("schedule", text)


def test_arguments_are_passed_and_offered_ones_only_where_they_fit():
    assert build("schedule", "edm_sigmas(rho=5)", SCHEDULES, num_steps=3).rho == 5
    assert build("schedule", "linear_betas", SCHEDULES, num_steps=3).num_train_steps == 3
    table = build("schedule", "linear_betas(num_steps=4)", SCHEDULES, num_steps=3)
    assert table.num_train_steps == 4


def test_unknown_names_and_arguments_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'log_normal'"):
        build("density", "lognormal", DENSITIES)
    with pytest.raises(ValueError, match=r"density log_normal has no argument 'sdt'.*'std'"):
        build("density", "log_normal(sdt=1)", DENSITIES)


def test_arguments_of_another_kind_and_missing_ones_are_refused_by_the_name_of_the_setting():
    table = {"blur": lambda std: std < 1.0}
    for text in ("blur(std='wide')", "blur"):
        with pytest.raises(ValueError, match=r"problem .blur.* does not fit blur: "):
            build("problem", text, table)


def test_predictions_are_the_rows_of_the_table():
    for name, row in PARAMETERIZATIONS.items():
        assert build("prediction", name, PREDICTIONS).name == row.name
    with pytest.raises(ValueError, match="prediction eps has no argument"):
        build("prediction", "eps(row=1)", PREDICTIONS)
