import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.networks import unet
from diffjax.networks.attention import Attention
from diffjax.networks.functional import flatten, functional
from diffjax.networks.unet_context import ContextConfig
from diffjax.networks.unet_latent_presets import sd1_unet
from diffjax.pretrained import Components, Model, UnsupportedError, save_model
from diffjax.pretrained.ip_adapter import IMAGE_TOKENS, load_ip_adapter, scale_image

CONFIG = sd1_unet(
    block_out_channels=(8, 16),
    attention=(False, "transformer"),
    num_groups=4,
    layers_per_block=1,
    context=ContextConfig(features=6, num_heads=2),
    zero_init=False,
)


def random_params(network):
    """Drawn without compiling anything."""
    draw = np.random.default_rng(0).standard_normal
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: 0.2 * draw(leaf.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def parts():
    network = unet(CONFIG)
    model = Model(CONFIG, network, random_params(network))
    return Components("StableDiffusionPipeline", {}, {"unet": model}, {}, {})


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """One for the attentions of the UNet: two on the way up, one in the middle, one down."""
    draw = np.random.default_rng(0).standard_normal
    tensors = {"image_proj.proj.weight": draw((24, 5)), "image_proj.proj.bias": draw(24)}
    tensors |= {"image_proj.norm.weight": draw(6), "image_proj.norm.bias": draw(6)}
    for number in (1, 3, 5, 7):
        for name in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{number}.{name}.weight"] = draw((16, 6))
    path = tmp_path_factory.mktemp("adapter") / "ip-adapter.safetensors"
    save_file({name: each.astype(np.float32) for name, each in tensors.items()}, path)
    return path


def test_an_image_is_attended_to_apart_from_the_text_and_added():
    make = lambda image: functional(
        lambda rngs: Attention(
            8, head_dim=4, context_features=6, image_tokens=image, out_bias=False, rngs=rngs
        )
    )
    both, plain = make(3), make(0)
    params = random_params(both)
    draw = np.random.default_rng(0).standard_normal
    x, text, image = (draw((2, *shape), np.float32) for shape in ((5, 8), (4, 6), (3, 6)))
    for name in ("to_q", "to_k", "to_v"):
        params[name]["bias"] = jnp.zeros_like(params[name]["bias"])
    of_text = {name: params[name] for name in ("to_q", "to_k", "to_v", "to_out")}
    of_image = {
        **of_text,
        **{
            name: {**of_text[name], "kernel": params[f"{name}_ip"]["kernel"]}
            for name in ("to_k", "to_v")
        },
    }
    see = jax.jit(plain.apply)
    together = jax.jit(both.apply)(params, x, jnp.concatenate([text, image], axis=1))
    apart = see(of_text, x, text) + see(of_image, x, image)
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_an_adapter_counts_the_middle_last_and_its_scale_is_linear(parts, adapter):
    stored = load_file(adapter)
    loaded = load_ip_adapter(adapter, parts, scale=0.5)
    flat = flatten(loaded.models["unet"].params)
    places = {
        1: "down_blocks 1 attentions 0",
        3: "up_blocks 0 attentions 0",
        5: "up_blocks 0 attentions 1",
        7: "mid_block attentions 0",
    }
    for number, place in places.items():
        route = (*place.split(), "transformer_blocks", "0", "attn2")
        for name, factor in (("to_k_ip", 1.0), ("to_v_ip", 0.5)):
            expected = factor * stored[f"ip_adapter.{number}.{name}.weight"].T
            np.testing.assert_array_equal(flat[*route, name, "kernel"], expected)
    assert loaded.models[IMAGE_TOKENS].config.count == 4
    twice = flatten(scale_image(loaded.models["unet"].params, 2.0))
    np.testing.assert_array_equal(
        twice[*route, "to_v_ip", "kernel"], stored["ip_adapter.7.to_v_ip.weight"].T
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("image_proj.latents", "IP-Adapter Plus"),
        ("image_proj.proj.0.weight", "whole states or of faces"),
        ("other", "holds no IP-Adapter"),
    ],
)
def test_other_kinds_are_named(parts, tmp_path, name, reason):
    save_file({name: np.ones((2, 2), np.float32)}, tmp_path / "adapter.safetensors")
    with pytest.raises(UnsupportedError, match=reason):
        load_ip_adapter(tmp_path / "adapter.safetensors", parts)


@pytest.mark.slow
def test_diffusers_makes_the_same_of_an_adapter(parts, adapter, tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    save_model(tmp_path, CONFIG, parts.models["unet"].params)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path)
    stored = {name: torch.tensor(each) for name, each in load_file(adapter).items()}
    only = lambda prefix: {
        name.removeprefix(prefix): each for name, each in stored.items() if name.startswith(prefix)
    }
    theirs._load_ip_adapter_weights(
        [{"image_proj": only("image_proj."), "ip_adapter": only("ip_adapter.")}],
        low_cpu_mem_usage=False,
    )
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.7]
    draw = lambda *shape: np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)
    x, text, seen, t = draw(2, 8, 8, 4), draw(2, 3, 6), draw(2, 5), np.array([10, 500])
    with torch.no_grad():
        expected = theirs(
            torch.tensor(np.moveaxis(x, -1, 1)),
            torch.tensor(t),
            torch.tensor(text),
            added_cond_kwargs={"image_embeds": [torch.tensor(seen)[:, None]]},
        ).sample.numpy()
    loaded = load_ip_adapter(adapter, parts, scale=0.7)

    @jax.jit
    def run(params):
        tokens = loaded.models[IMAGE_TOKENS].network.apply(params[IMAGE_TOKENS], seen)
        context = jnp.concatenate([text, tokens], axis=1)
        return loaded.models["unet"].network.apply(params["unet"], x, t, context=context)

    found = np.moveaxis(run(loaded.params), -1, 1)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
