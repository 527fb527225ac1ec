from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.parameterizations import velocity
from diffjax.networks.autoencoder_kl import sd3_autoencoder
from diffjax.networks.clip import Encoding
from diffjax.networks.mmdit import MMDiTConfig
from diffjax.pipelines import make_system
from diffjax.pipelines.diffusion_transformers import stable_diffusion_3
from diffjax.pretrained import Components, Tokens, load_components

CONTEXT = 12


def clip(features):
    """An encoder whose states are its tokens, over and over."""

    def apply(params, ids, *, skip):
        states = jnp.repeat(params * ids[..., None], features, axis=-1)
        return Encoding(states, states[:, 0], (states, states))

    return SimpleNamespace(
        config=SimpleNamespace(max_positions=77), network=SimpleNamespace(apply=apply)
    )


def t5(states):
    """An encoder that makes the same state of every token."""
    apply = lambda params, ids, *, mask: jnp.full((*ids.shape, CONTEXT), states)
    return SimpleNamespace(network=SimpleNamespace(apply=apply))


def tokenizer(texts, *, length, chunks, emphasis):
    ids = np.tile(np.arange(length), (len(texts), 1)) + [[len(text)] for text in texts]
    return Tokens(ids, np.ones_like(ids), np.ones(ids.shape, np.float32))


def told(**t5s):
    """What the network of a Stable Diffusion 3 is told, with the T5 that is given."""
    shape = {"num_layers": 1, "num_heads": 2, "head_dim": 8, "context_dim": CONTEXT}
    models = {"text_encoder": clip(3), "text_encoder_2": clip(4), **t5s}
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")[: len(models)]
    models |= {
        "transformer": SimpleNamespace(config=MMDiTConfig(**shape), network=None),
        "vae": SimpleNamespace(config=sd3_autoencoder(), network=None),
    }
    scheduler = SimpleNamespace(config={}, parameterization=velocity)
    parts = Components(
        "StableDiffusion3Pipeline",
        {},
        models,
        dict.fromkeys(names, tokenizer),
        {"scheduler": scheduler},
    )
    system = stable_diffusion_3(parts)
    prompts, away = ["a cat", "two red dogs"], [None, "rain"]
    inputs = system.prepare(prompts, away, height=64, width=64, max_length=5)
    params = {"text_encoder": 1.0, "text_encoder_2": 2.0, "text_encoder_3": None}
    return [system.condition(params, each) for each in inputs]


def test_a_t5_that_is_not_there_is_one_that_says_nothing():
    for without, silent in zip(told(), told(text_encoder_3=t5(0.0)), strict=True):
        assert without["context"].shape == (2, 77 + 5, CONTEXT)
        for name in ("context", "pooled"):
            np.testing.assert_array_equal(without[name], silent[name])
    without, loud = told()[0]["context"], told(text_encoder_3=t5(1.0))[0]["context"]
    np.testing.assert_array_equal(without[:, :77], loud[:, :77])
    assert float(jnp.abs(without - loud)[:, 77:].min()) == pytest.approx(1.0)


def test_prompts_of_pixart_are_lower_case_and_those_of_sigma_longer():
    """As the captions were that they learned; T5's tokens tell large letters from small ones."""
    folder = Path(__file__).parents[1] / "references" / "pipelines" / "pixart_alpha" / "pipeline"
    alpha = load_components(folder)
    sizes = {"height": 16, "width": 16}
    ids = {}
    for name in ("PixArtAlphaPipeline", "PixArtSigmaPipeline"):
        prepare = make_system(alpha._replace(name=name)).prepare
        large, small = (
            prepare([text], [None], **sizes)[0]["tokenizer_ids"] for text in (" The CAT", "the cat")
        )
        np.testing.assert_array_equal(large, small)
        ids[name] = small
    assert [each.shape for each in ids.values()] == [(1, 120), (1, 300)]
