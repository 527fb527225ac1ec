from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.networks import unet
from diffjax.networks.attention import Attention
from diffjax.networks.clip import Encoding
from diffjax.networks.functional import flatten, functional
from diffjax.networks.unet_context import ContextConfig
from diffjax.networks.unet_latent_presets import sd1_unet
from diffjax.pipelines.image_prompt import image_prompt, with_image_prompt
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
    tensors |= attentions(lambda *shape: draw(shape))
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


def attentions(draw):
    """Keys and values of an adapter for the UNet, its attentions counted as files count them."""
    names = [
        f"ip_adapter.{i}.{name}.weight" for i in (1, 3, 5, 7) for name in ("to_k_ip", "to_v_ip")
    ]
    return {name: draw(16, 6) for name in names}


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    """One that resamples states of 5 features into 3 tokens, by two blocks of two heads."""
    shapes = {"proj_in.weight": (8, 5), "proj_in.bias": (8,), "latents": (1, 3, 8)}
    shapes |= {"proj_out.weight": (6, 8), "proj_out.bias": (6,)}
    shapes |= {"norm_out.weight": (6,), "norm_out.bias": (6,)}
    for layer in ("layers.0", "layers.1"):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"{layer}.{norm}.{end}": (8,) for end in ("weight", "bias")}
        shapes |= {f"{layer}.0.to_q.weight": (128, 8), f"{layer}.0.to_kv.weight": (256, 8)}
        shapes |= {f"{layer}.0.to_out.weight": (8, 128)}
        shapes |= {f"{layer}.1.1.weight": (32, 8), f"{layer}.1.3.weight": (8, 32)}
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
    tensors = {f"image_proj.{name}": draw(*shape) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("plus") / "ip-adapter-plus.safetensors"
    save_file({**tensors, **attentions(draw)}, path)
    return path


@pytest.mark.slow
def test_a_resampler_is_that_of_diffusers(parts, plus):
    torch = pytest.importorskip("torch")
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    reference = embeddings.IPAdapterPlusImageProjection(
        embed_dims=5, output_dims=6, hidden_dims=8, depth=2, dim_head=64, heads=2, num_queries=3
    )
    # where each of theirs stands in files
    places = {
        "ln0": "0.norm1",
        "ln1": "0.norm2",
        "attn.to_q": "0.to_q",
        "attn.to_out.0": "0.to_out",
    }
    places |= {"ff.0": "1.0", "ff.1.net.0.proj": "1.1", "ff.1.net.2": "1.3"}
    stored = {name: torch.tensor(each) for name, each in load_file(plus).items()}
    found = {}
    for name in reference.state_dict():
        _, number, rest = name.split(".", 2) if name.startswith("layers.") else ("", "", name)
        part, _, end = rest.rpartition(".")
        layer = f"image_proj.layers.{number}."
        if part in ("attn.to_k", "attn.to_v"):
            both = stored[f"{layer}0.to_kv.weight"].chunk(2)
            found[name] = both[part == "attn.to_v"]
        else:
            found[name] = stored[f"{layer}{places[part]}.{end}" if number else f"image_proj.{name}"]
    reference.load_state_dict(found)
    states = np.random.default_rng(1).standard_normal((2, 7, 5), np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(states)).numpy()
    model = load_ip_adapter(plus, parts).models[IMAGE_TOKENS]
    tokens = jax.jit(model.network.apply)(model.params, states)
    assert tokens.shape == (2, 3, 6)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_an_adapter_that_resamples_sees_states_and_others_an_embedding(parts, plus, adapter):
    made = load_ip_adapter(plus, parts)
    assert made.models["unet"].config.context.image_tokens == 3
    encode = lambda params, pixels: Encoding(
        pixels[:, 0], pixels[:, 0, 0], (pixels, params * pixels, pixels + 9.0)
    )
    config = SimpleNamespace(hidden_size=5, projection_dim=5)
    encoder = SimpleNamespace(config=config, network=SimpleNamespace(apply=encode))
    pixels = jnp.arange(30.0).reshape(1, 3, 2, 5)
    # in front of the last of two layers
    seen, nothing = image_prompt(made, encoder, 2.0, pixels)
    np.testing.assert_array_equal(seen, 2.0 * pixels)
    np.testing.assert_array_equal(nothing, jnp.zeros_like(pixels))
    first, other = with_image_prompt([{"a": 1}, {"a": 2}], seen, nothing)
    assert (first["image_prompt"] is seen, other["image_prompt"] is nothing) == (True, True)
    plain = load_ip_adapter(adapter, parts)
    np.testing.assert_array_equal(image_prompt(plain, encoder, 2.0, pixels)[0], pixels[:, 0, 0])
    config.hidden_size = 4
    with pytest.raises(ValueError, match="states of 5 features, and this image encoder makes 4"):
        image_prompt(made, encoder, 2.0, pixels)


def test_damaged_and_second_adapters_are_refused(parts, plus, tmp_path):
    tensors = load_file(plus)
    del tensors["image_proj.layers.0.0.to_q.weight"], tensors["image_proj.proj_out.bias"]
    save_file(tensors, tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match=r"lacks image_proj\.layers\.0\.0\.to_q\.weight"):
        load_ip_adapter(tmp_path / "damaged.safetensors", parts)
    wide = {**load_file(plus), "image_proj.norm_out.weight": np.ones(7, np.float32)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="wrong shape"):
        load_ip_adapter(tmp_path / "wide.safetensors", parts)
    with pytest.raises(ValueError, match="hold an IP-Adapter already"):
        load_ip_adapter(plus, load_ip_adapter(plus, parts))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """One that sees embeddings of faces of 5 numbers, with changes of rank 2 of all attentions."""
    draw = np.random.default_rng(0).standard_normal
    shapes = {"proj.0.weight": (10, 5), "proj.0.bias": (10,), "proj.2.weight": (24, 10)}
    shapes |= {"proj.2.bias": (24,), "norm.weight": (6,), "norm.bias": (6,)}
    tensors = {f"image_proj.{name}": draw(shape) for name, shape in shapes.items()}
    tensors |= attentions(lambda *shape: draw(shape))
    for number in range(8):
        for name in ("to_q", "to_k", "to_v", "to_out"):
            width = 6 if number % 2 and name in ("to_k", "to_v") else 16
            change = f"ip_adapter.{number}.{name}_lora"
            tensors |= {f"{change}.down.weight": draw((2, width))}
            tensors |= {f"{change}.up.weight": draw((16, 2))}
    path = tmp_path_factory.mktemp("faces") / "ip-adapter-faceid.safetensors"
    save_file({name: 0.3 * each.astype(np.float32) for name, each in tensors.items()}, path)
    return path


def test_an_adapter_of_faces_changes_all_attentions_as_files_number_them(parts, faces):
    stored = load_file(faces)
    loaded = load_ip_adapter(faces, parts, scale=0.5)
    before, after = (flatten(each.models["unet"].params) for each in (parts, loaded))
    places = {
        0: "down_blocks 1 attentions 0 transformer_blocks 0 attn1",
        5: "up_blocks 0 attentions 1 transformer_blocks 0 attn2",
        6: "mid_block attentions 0 transformer_blocks 0 attn1",
    }
    for number, place in places.items():
        for name, end in (("to_q", ()), ("to_k", ()), ("to_v", ()), ("to_out", ("0",))):
            route = (*place.split(), name, *end, "kernel")
            change = f"ip_adapter.{number}.{name}_lora"
            up, down = (stored[f"{change}.{kind}.weight"] for kind in ("up", "down"))
            change = after[route] - before[route]
            np.testing.assert_allclose(change, (up @ down).T, atol=1e-5)
    config = loaded.models[IMAGE_TOKENS].config
    assert (config.embedding_features, config.hidden, config.count) == (5, 10, 4)
    encoder = SimpleNamespace(config=SimpleNamespace(hidden_size=5, projection_dim=5))
    with pytest.raises(ValueError, match="sees embeddings of faces"):
        image_prompt(loaded, encoder, 2.0, jnp.ones((1, 3, 2, 5)))


def test_changes_of_other_attentions_are_refused(parts, faces, tmp_path):
    tensors = load_file(faces)
    moved = {name.replace("ip_adapter.7.", "ip_adapter.9."): each for name, each in tensors.items()}
    save_file(moved, tmp_path / "moved.safetensors")
    with pytest.raises(UnsupportedError, match=r"4 of 32 modules are not in the networks unet"):
        load_ip_adapter(tmp_path / "moved.safetensors", parts)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("image_proj.proj.3.weight", "a token of every state"),
        ("image_proj.perceiver_resampler.proj_in.weight", "of faces and their pictures"),
        ("other", "holds no IP-Adapter"),
    ],
)
def test_other_kinds_are_named(parts, tmp_path, name, reason):
    save_file({name: np.ones((2, 2), np.float32)}, tmp_path / "adapter.safetensors")
    with pytest.raises(UnsupportedError, match=reason):
        load_ip_adapter(tmp_path / "adapter.safetensors", parts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "faces"])
def test_diffusers_makes_the_same_of_an_adapter(parts, kind, request, tmp_path):
    adapter = request.getfixturevalue(kind)
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
    for number, (name, processor) in enumerate(theirs.attn_processors.items()):
        if hasattr(processor, "scale"):
            processor.scale = [0.7]
        if kind == "faces":
            merge_changes(theirs.get_submodule(name.removesuffix(".processor")), stored, number)
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


def merge_changes(attention, stored, number):
    """What an adapter of faces holds for an attention of diffusers, in its weights."""
    layers = {"to_q": attention.to_q, "to_k": attention.to_k, "to_v": attention.to_v}
    for name, layer in {**layers, "to_out": attention.to_out[0]}.items():
        change = f"ip_adapter.{number}.{name}_lora"
        layer.weight.data += stored[f"{change}.up.weight"] @ stored[f"{change}.down.weight"]
