"""Settings that no script can work with are refused by name, before any work."""

import pytest

import choices
import cli
import sample
import train
from model import SampleOptions


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--guidance-scale", "nan"], "--guidance-scale is nan"),
        (["--guidance-interval", "0.3", "nan"], "--guidance-interval is"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", str(2**63)], "seeds are 0 to"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_by_their_flag(words, flag):
    with pytest.raises(ValueError, match=flag):
        cli.parse_args(sample.Args, args=["--workdir", "runs/digits", *words])


def test_a_flag_inside_a_part_of_a_configuration_is_named_in_full():
    with pytest.raises(ValueError, match=r"^--optimizer\.learning-rate is nan"):
        train.read_command_line(["digits", "--optimizer.learning-rate", "nan"])


def test_an_output_below_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot be written"):
        cli.prepare_output(tmp_path / "file" / "digits.png", ".png")


@pytest.mark.parametrize("interval", [(3.0, 1.0), (-1.0, 1.0)])
def test_an_interval_of_guidance_goes_upwards_from_zero(interval):
    with pytest.raises(ValueError, match="0 <= low < high"):
        SampleOptions(guidance_interval=interval)


def test_times_that_are_no_numbers_are_refused(tmp_path):
    (tmp_path / "times.json").write_text('{"times": "abc"}')
    with pytest.raises(ValueError, match=r"--times is .*times\.json"):
        sample.parse_times(str(tmp_path / "times.json"))


def test_a_spacing_with_a_root_of_zero_is_refused():
    settings = {"num_steps": 5, "smallest": 0.1, "largest": 10.0}
    with pytest.raises(ValueError, match="rho is 0; it must be positive"):
        choices.build("spacing", "karras(rho=0)", choices.RATIOS, **settings)
