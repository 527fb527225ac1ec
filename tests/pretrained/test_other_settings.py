"""Settings that no reference case has, against the networks of diffusers and transformers.

Each row puts several of them into one small network with random weights, which is saved there and
loaded here.
"""

import importlib
import inspect

import jax
import numpy as np
import pytest
from parity_cases import Case
from parity_models import check_model
from settings_table import ROWS

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5


# classes of diffusers that it does not name itself
INSIDE = {
    "LDMBertModel": "diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion",
    "UnCLIPTextProjModel": "diffusers.pipelines.deprecated.unclip.text_proj",
}

# arguments that diffusers takes in one table
ADDED = ("text_embeds", "time_ids", "image_embeds", "resolution", "aspect_ratio")


@pytest.mark.parametrize("row", ROWS)
def test_other_settings_are_followed_as_they_are_there(row, tmp_path):
    torch = pytest.importorskip("torch")
    class_name, settings, given = ROWS[row]
    arrays = drawn(given)
    model = random_model(torch, class_name, settings)
    model.save_pretrained(tmp_path)
    tensors = {name: torch.tensor(each) for name, each in arrays.items()}
    with torch.no_grad():
        expected = outputs(class_name, model, tensors)
    case = Case(
        folder=tmp_path,
        settings={"classes": [class_name], "tolerance": {"rtol": TOLERANCE}},
        checkpoint=tmp_path,
        inputs=arrays,
        outputs={name: each.numpy() for name, each in expected.items()},
    )
    with jax.default_matmul_precision("highest"):
        found = check_model(case)
    assert found
    for each in found:
        assert each.error < each.tolerance, each


def drawn(given):
    """Normal numbers of the given shapes; arrays as they are."""
    draw = np.random.default_rng(0).standard_normal
    return {
        name: draw(each).astype(np.float32) if isinstance(each, tuple) else each
        for name, each in given.items()
    }


def random_model(torch, class_name, settings):
    """A network whose parameters are all random, those that start at zero or one too."""
    diffusers, transformers = (pytest.importorskip(each) for each in ("diffusers", "transformers"))
    inside = [importlib.import_module(INSIDE[class_name])] if class_name in INSIDE else []
    rooms = [room for room in (diffusers, transformers, *inside) if hasattr(room, class_name)]
    make = getattr(rooms[0], class_name)
    torch.manual_seed(0)
    of_transformers = issubclass(make, transformers.PreTrainedModel)
    model = make(make.config_class(**settings)) if of_transformers else make(**settings)
    for name, parameter in model.named_parameters():
        size, spread = parameter.shape, torch.randn(parameter.shape)
        if len(size) > 1:
            spread = spread / size[1:].numel() ** 0.5
        elif name.endswith("weight"):
            spread = 1 + 0.3 * spread
        parameter.data = spread
    return model.eval()


def outputs(class_name, model, given):
    """What a network makes of its arguments, by the names of the reference cases."""
    if class_name == "UnCLIPTextProjModel":
        context, labels = model(**given, do_classifier_free_guidance=True)
        return {"context": context, "labels": labels}
    if class_name == "SpeechT5HifiGan":
        return {"waveform": model(**given)}
    if class_name in ("AutoencoderKL", "AutoencoderTiny", "VQModel"):
        return of_autoencoder(class_name, model, given)
    if class_name == "ControlNetModel":
        names = ("down_0", "down_1", "down_2", "down_3", "down_4", "down_5", "down_6")
        down, middle = model(**given, return_dict=False)
        return {**dict(zip(names, down)), "mid": middle}
    if class_name == "T2IAdapter":
        return {f"feature_{i}": each for i, each in enumerate(model(given["image"]))}
    if class_name == "UNetMotionModel":
        frames = given["sample"].shape[2]
        states = given["encoder_hidden_states"].repeat_interleave(frames, 0)
        given = {**given, "encoder_hidden_states": states}
    added = {name: given[name] for name in ADDED if name in given}
    plain = {name: each for name, each in given.items() if name not in ADDED}
    if "added_cond_kwargs" in inspect.signature(model.forward).parameters:
        plain["added_cond_kwargs"] = added
    found = model(**plain)
    return {name: found[name] for name in found if found[name] is not None}


def of_autoencoder(class_name, model, given):
    decoded = model.decode(given["latents"]).sample
    if class_name != "AutoencoderKL":
        return {"encoded": model.encode(given["image"]).latents, "decoded": decoded}
    found = model.encode(given["image"]).latent_dist
    return {"mean": found.mean, "logvar": found.logvar, "decoded": decoded}
