import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.networks import unet
from diffjax.networks.clip import CLIPTextConfig, clip_text
from diffjax.networks.functional import flatten
from diffjax.networks.unet_context import ContextConfig
from diffjax.networks.unet_latent_presets import sdxl_unet
from diffjax.pretrained import Model, UnsupportedError
from diffjax.pretrained.lora import load_lora, merge_lora

CONFIG = CLIPTextConfig(
    vocab_size=9, hidden_size=6, intermediate_size=8, num_heads=2, num_layers=1, max_positions=4
)
MODULE = "text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def model():
    network = clip_text(CONFIG)
    return Model(CONFIG, network, network.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def xl():
    """A network with the blocks of SDXL, two levels of them; of its params, the shapes."""
    context = ContextConfig(
        features=4, num_heads=2, added="text_time", added_features=8, time_id_features=2
    )
    config = sdxl_unet(
        block_out_channels=(8, 8),
        attention=(False, "transformer"),
        num_groups=4,
        context=context,
    )
    network = unet(config)
    return Model(config, network, jax.eval_shape(network.init, jax.random.key(0)))


def down_and_up(rank=2):
    draw = np.random.default_rng(0).normal
    return (
        draw(size=(rank, 6)).astype(np.float32),
        draw(size=(8, rank)).astype(np.float32),
    )


def kernel(params):
    return params["text_encoder"]["layers"]["0"]["ff"]["linear_1"]["kernel"]


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"text_encoder.{MODULE}.lora_A.weight", f"text_encoder.{MODULE}.lora_B.weight"),
        (
            f"text_encoder.{MODULE}.lora_A.default.weight",
            f"text_encoder.{MODULE}.lora_B.default.weight",
        ),
        (
            f"text_encoder.{MODULE}.lora_linear_layer.down.weight",
            f"text_encoder.{MODULE}.lora_linear_layer.up.weight",
        ),
        (
            f"text_encoder.base_model.model.{MODULE}.lora_A.default_0.weight",
            f"text_encoder.base_model.model.{MODULE}.lora_B.default_0.weight",
        ),
        (
            "lora_te_" + MODULE.replace(".", "_") + ".lora_down.weight",
            "lora_te_" + MODULE.replace(".", "_") + ".lora_up.weight",
        ),
    ],
)
def test_all_namings_add_up_times_down(model, tmp_path, down, up):
    a, b = down_and_up()
    save_file({down: a, up: b}, tmp_path / "lora.safetensors")
    lora = load_lora(tmp_path / "lora.safetensors", {"text_encoder": model})
    params = {"text_encoder": model.params}
    change = kernel(merge_lora(params, lora, 0.5)) - kernel(params)
    np.testing.assert_allclose(change, 0.5 * (b @ a).T, atol=1e-5)
    back = merge_lora(merge_lora(params, lora), lora, -1.0)
    np.testing.assert_allclose(kernel(back), kernel(params), atol=1e-5)


@pytest.mark.parametrize(
    ("module", "route"),
    [
        (
            "input_blocks_5_1_transformer_blocks_0_attn1_to_out_0",
            "down_blocks 1 attentions 1 transformer_blocks 0 attn1 to_out 0",
        ),
        ("input_blocks_3_0_op", "down_blocks 0 downsamplers 0 conv"),
        ("middle_block_2_out_layers_3", "mid_block resnets 1 conv2"),
        ("output_blocks_0_1_proj_in", "up_blocks 0 attentions 0 proj_in"),
        ("output_blocks_2_2_conv", "up_blocks 0 upsamplers 0 conv"),
        ("label_emb_0_0", "add_embedding linear_1"),
    ],
)
def test_blocks_of_the_first_code_are_those_of_the_network(xl, tmp_path, module, route):
    route = (*route.split(), "kernel")
    kernel = flatten(xl.params)[route]
    *window, inputs, outputs = kernel.shape
    down = np.ones((1, inputs, *window), np.float32)
    up = np.ones((outputs, 1, *[1] * len(window)), np.float32)
    name = f"lora_unet_{module}"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    save_file(tensors, tmp_path / "lora.safetensors")
    assert list(load_lora(tmp_path / "lora.safetensors", {"unet": xl})["unet"]) == [route]


def test_alpha_counts_by_the_rank_and_the_scale_may_be_traced(model, tmp_path):
    a, b = down_and_up()
    name = "lora_te_" + MODULE.replace(".", "_")
    tensors = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
    save_file({**tensors, f"{name}.alpha": np.ones(())}, tmp_path / "lora.safetensors")
    lora = load_lora(tmp_path / "lora.safetensors", {"text_encoder": model})
    params = {"text_encoder": model.params}
    merged = jax.jit(lambda params, scale: merge_lora(params, lora, scale))(params, jnp.array(2.0))
    np.testing.assert_allclose(kernel(merged) - kernel(params), (b @ a).T, atol=1e-5)


def saved_settings(folder, tensors, settings, *, beside):
    """A file of tensors with settings of PEFT, beside it or in its notes."""
    path = folder / "adapter_model.safetensors"
    if beside:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        settings = None
    notes = None if settings is None else {"lora_adapter_metadata": json.dumps(settings)}
    save_file(tensors, path, metadata=notes)
    return path


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({}, 1.0),
        ({"lora_alpha": 8}, 4.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"layers.0.mlp.fc1": 1, "mlp.fc2": 7}}, 0.5),
    ],
)
def test_alpha_is_also_read_where_peft_and_diffusers_note_it(model, tmp_path, settings, factor):
    a, b = down_and_up()
    params = {"text_encoder": model.params}
    for beside, beginning in ((True, "base_model.model."), (False, "text_encoder.")):
        named = {f"text_encoder.{k}": v for k, v in settings.items()}
        tensors = {
            f"{beginning}{MODULE}.lora_{end}.weight": each for end, each in zip("AB", (a, b))
        }
        given = settings if beside else named
        path = saved_settings(tmp_path, tensors, given, beside=beside)
        merged = merge_lora(params, load_lora(path, {"text_encoder": model}))
        change = kernel(merged) - kernel(params)
        np.testing.assert_allclose(change, factor * (b @ a).T, atol=1e-5)


@pytest.mark.parametrize("note", ["{", "[1]"])
def test_notes_that_are_no_settings_are_refused(model, tmp_path, note):
    a, b = down_and_up()
    tensors = {f"text_encoder.{MODULE}.lora_{end}.weight": each for end, each in zip("AB", (a, b))}
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, metadata={"lora_adapter_metadata": note})
    with pytest.raises(ValueError, match="the note lora_adapter_metadata is no"):
        load_lora(path, {"text_encoder": model})


@pytest.mark.parametrize(("old", "new"), [("to_q", "to_q"), ("to_out", "to_out 0")])
def test_projections_of_texts_have_older_names(model, tmp_path, old, new):
    name = f"text_encoder.text_model.encoder.layers.0.self_attn.{old}_lora"
    ends = {f"{name}.down.weight": np.ones((2, 6)), f"{name}.up.weight": np.ones((6, 2))}
    save_file(ends, tmp_path / "lora.safetensors")
    lora = load_lora(tmp_path / "lora.safetensors", {"text_encoder": model})
    assert list(lora["text_encoder"]) == [tuple(f"layers 0 attn1 {new} kernel".split())]


def test_files_without_whole_changes_are_refused(model, tmp_path):
    a, b = down_and_up()
    name = f"text_encoder.{MODULE}"
    whole = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    for tensors, reason in (
        ({}, "holds no tensors"),
        ({f"{name}.lora_A.weight": a}, f"{name} has no up"),
        ({**whole, f"{name}.alpha": np.ones(2)}, "alpha has the shape"),
    ):
        save_file(tensors, tmp_path / "lora.safetensors")
        with pytest.raises(ValueError, match=reason):
            load_lora(tmp_path / "lora.safetensors", {"text_encoder": model})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text_encoder.text_model.encoder.layers.7.mlp.fc1", "1 of 1 modules .*another model"),
        (f"text_encoder.{MODULE}.hada_w1", "neither down, up nor alpha"),
    ],
)
def test_what_fits_no_module_is_named(model, tmp_path, name, reason):
    tensors = {f"{name}.lora_{end}.weight": each for end, each in zip("AB", down_and_up())}
    if "hada" in name:
        tensors = {f"{name}_a": down_and_up()[0]}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(UnsupportedError, match=reason):
        load_lora(tmp_path / "lora.safetensors", {"text_encoder": model})


def test_shapes_that_do_not_fit_are_refused(model, tmp_path):
    a, b = down_and_up()
    names = [f"text_encoder.{MODULE}.lora_{end}.weight" for end in "AB"]
    for tensors in ((a, b[:, :1]), (a[:, :3].copy(), b)):
        save_file(dict(zip(names, tensors)), tmp_path / "lora.safetensors")
        with pytest.raises(ValueError, match=r"fit each other|change no kernel"):
            load_lora(tmp_path / "lora.safetensors", {"text_encoder": model})
