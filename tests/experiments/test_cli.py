"""Settings that no script can work with are refused by name, before any work."""

import dataclasses

import pytest

import choices
import cli
import loop
import sample
import train
from config import Config, OptimizerConfig
from configs import CONFIGS
from model import SampleOptions
from objective import make_optimizer


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


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"--workdir is .*, a file"):
        loop.claim_workdir(tmp_path / "file", Config())


def test_an_output_below_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot be written"):
        cli.prepare_output(tmp_path / "file" / "digits.png", ".png")


@pytest.mark.parametrize("interval", [(3.0, 1.0), (-1.0, 1.0)])
def test_an_interval_of_guidance_goes_upwards_from_zero(interval):
    with pytest.raises(ValueError, match="0 <= low <= high"):
        SampleOptions(guidance_interval=interval)


def test_times_that_are_no_numbers_are_refused(tmp_path):
    (tmp_path / "times.json").write_text('{"times": "abc"}')
    with pytest.raises(ValueError, match=r"--times is .*times\.json"):
        sample.parse_times(str(tmp_path / "times.json"))


def test_times_of_a_file_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "times.json"
    path.write_text('{"times": [999, 0.5, 2e-05, 0]}')
    assert sample.parse_times(str(path)) == (999, 0.5, 2e-05, 0)
    assert sample.parse_times("999,0.5,0") == (999, 0.5, 0)


def test_a_spacing_with_a_root_of_zero_is_refused():
    settings = {"num_steps": 5, "smallest": 0.1, "largest": 10.0}
    with pytest.raises(ValueError, match="rho is 0; it must be positive"):
        choices.build("spacing", "karras(rho=0)", choices.RATIOS, **settings)


def test_settings_may_change_until_a_run_has_made_something(tmp_path):
    loop.claim_workdir(tmp_path, Config(num_steps=10, batch_size=8))
    loop.claim_workdir(tmp_path, Config(num_steps=10, batch_size=16))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    loop.claim_workdir(tmp_path, Config(num_steps=20, batch_size=16))
    with pytest.raises(ValueError, match="batch_size 16 -> 8"):
        loop.claim_workdir(tmp_path, Config(num_steps=20, batch_size=8))


def test_a_run_with_captions_is_not_continued_by_one_without(tmp_path):
    plain, told = Config(), CONFIGS["shapes_text"]
    told = dataclasses.replace(plain, text=told.text, network=told.network)
    for name, first, other in (("a", plain, told), ("b", told, plain)):
        loop.claim_workdir(tmp_path / name, first)
        (tmp_path / name / "checkpoints" / "5").mkdir(parents=True)
        with pytest.raises(ValueError, match=r"other settings \((network|text)\..* and \d+ more\)"):
            loop.claim_workdir(tmp_path / name, other)


def test_a_learning_rate_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"learning_rate is -1\.0"):
        make_optimizer(OptimizerConfig(learning_rate=-1.0), 10)
