import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.networks.clip import CLIPVisionConfig, clip_vision
from diffjax.pretrained import save_model
from diffjax.pretrained.safety import load_safety_checker, unsafe

CONFIG = CLIPVisionConfig(
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_heads=2,
    image_size=8,
    patch_size=4,
    projection_dim=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checker of random weights, with thresholds that half of all pictures pass."""
    path = tmp_path_factory.mktemp("safety")
    draw = np.random.default_rng(0).standard_normal
    shapes = jax.eval_shape(clip_vision(CONFIG).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: draw(leaf.shape).astype(np.float32), shapes)
    save_model(path / "encoder", CONFIG, params)
    tensors = load_file(path / "encoder" / "model.safetensors")
    nested = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: tensor
        for name, tensor in tensors.items()
    }
    concepts = {"concept_embeds": draw((17, 6)), "special_care_embeds": draw((3, 6))}
    concepts |= {
        "concept_embeds_weights": np.full(17, 0.7),
        "special_care_embeds_weights": [0.6] * 3,
    }
    nested |= {name: np.array(each, np.float32) for name, each in concepts.items()}
    save_file(nested, path / "model.safetensors", metadata={"format": "pt"})
    vision = json.loads((path / "encoder" / "config.json").read_text())
    settings = {"vision_config": vision, "projection_dim": 6, "model_type": "clip"}
    (path / "config.json").write_text(json.dumps(settings))
    return path


def pictures(count=64):
    return np.random.default_rng(1).standard_normal((count, 8, 8, 3), np.float32)


def test_pictures_near_a_concept_are_unsafe_and_thresholds_fall_near_special_ones(folder):
    checker = load_safety_checker(folder)
    run = jax.jit(lambda params, pixels: unsafe(checker, params, pixels))
    concepts = checker.params["concepts"]

    def found(thresholds, special):
        changed = {
            **concepts,
            "thresholds": np.full(17, thresholds, np.float32),
            "special_thresholds": np.full(3, special, np.float32),
        }
        return np.asarray(run({**checker.params, "concepts": changed}, pictures()))

    assert found(-2.0, 2.0).all()
    assert not found(2.0, 2.0).any()
    # where all are near a special concept, all thresholds are lower
    np.testing.assert_array_equal(found(0.7, -2.0), found(0.69, 2.0))
    assert 0 < found(0.7, 2.0).sum() < 64


def test_a_folder_of_something_else_is_refused(folder):
    with pytest.raises(ValueError, match="concept_embeds"):
        load_safety_checker(folder / "encoder")


@pytest.mark.slow
def test_diffusers_finds_the_same_pictures_unsafe(folder):
    pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    theirs = StableDiffusionSafetyChecker.from_pretrained(folder)
    pixels = pictures()
    _, expected = theirs(torch.tensor(np.moveaxis(pixels, -1, 1)), np.ones((64, 8, 8, 3)))
    checker = load_safety_checker(folder)
    found = jax.jit(lambda params, pixels: unsafe(checker, params, pixels))(checker.params, pixels)
    np.testing.assert_array_equal(found, expected)
    assert 0 < sum(expected) < 64
