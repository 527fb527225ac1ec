"""Every configuration traces its loss and its sampler; those of the digits take real steps."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from config import from_dict, load_config, save_config
from configs import CONFIGS
from diffjax.core.conditioning import Condition
from diffjax.networks import Functional
from diffjax.training import init_train_state, make_mesh, make_train_step
from model import SampleOptions, make_levels, make_schedule, sampling_defaults
from objective import make_loss, make_optimizer
from runs import image_shape, make_network
from samplers import make_sampler


def thin(name):
    """A configuration with the least network of its kind."""
    config = CONFIGS[name]
    network = config.network
    changes = {
        "block_out_channels": (8,) * len(network.block_out_channels),
        "stem_channels": None,
        "layers_per_block": 1,
        "num_groups": None if network.num_groups is None else 4,
        "head_dim": None,
    }
    if network.context is not None:
        changes["context"] = dataclasses.replace(network.context, num_heads=2)
    return dataclasses.replace(config, network=dataclasses.replace(network, **changes))


def batch_of(config, size=2):
    rng = np.random.default_rng(0)
    batch = {"x0": rng.uniform(-1, 1, (size, *image_shape(config))).astype(np.float32)}
    if config.network.num_classes is not None:
        batch["labels"] = np.arange(size, dtype=np.int32)
    if config.text is not None:
        shape = (size, config.text.max_tokens)
        batch["context"] = rng.normal(size=(*shape, config.text.features)).astype(np.float32)
        batch["context_mask"] = np.ones(shape, np.float32)
    return batch


DIFFUSIONS = [name for name, config in CONFIGS.items() if config.task != "autoencode"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_the_loss_and_the_sampler_of_a_configuration_can_be_traced(name):
    config = thin(name)
    network = make_network(config)
    params = jax.eval_shape(network.init, jax.random.key(0))
    batch = batch_of(config)
    loss = make_loss(config, network.apply)
    losses, _ = jax.eval_shape(lambda p: loss(p, batch, jax.random.key(0)), params)
    chex.assert_shape(losses, (2,))
    assert losses.dtype == jnp.float32
    if config.task == "classify":
        return
    options = sampling_defaults(config)
    texts = {name: batch[name] for name in ("context", "context_mask") if name in batch}
    text = Condition(dict.fromkeys(texts, 0.0)) if texts else None
    generate = make_sampler(config, network, options, make_mesh(), text=text)
    images = jax.eval_shape(
        generate, params, jax.random.key(0), jnp.arange(2), batch.get("labels"), texts or None
    )
    chex.assert_equal_shape([images, batch["x0"]])


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_sampling_leads_from_noise_to_clean_data(name):
    config = CONFIGS[name]
    options = sampling_defaults(config)
    levels = make_levels(options, make_schedule(config.diffusion))
    ratios = levels.sigma / jnp.maximum(levels.alpha, 1e-9)
    assert ratios[0] > 5
    assert np.all(np.diff(ratios) < 0)
    assert (float(levels.sigma[-1]), float(levels.alpha[-1])) == (0.0, 1.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_data(name, tmp_path):
    save_config(CONFIGS[name], tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == CONFIGS[name]
    assert from_dict(type(CONFIGS[name]), dataclasses.asdict(CONFIGS[name])) == CONFIGS[name]


def affine(params, x, t, *, labels, keys=None):
    """The least network: loss and optimizer are tested here, not the UNet."""
    return params["scale"] * x + params["shift"]


DENOISERS = [name for name, config in CONFIGS.items() if config.task == "denoise"]


@pytest.mark.parametrize("name", [name for name in DENOISERS if name.startswith("digits")])
def test_digits_configurations_take_steps(name):
    config = CONFIGS[name]
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    before = {"scale": jnp.array(0.1), "shift": jnp.array(0.1)}
    state = init_train_state(before, optimizer, ema_decay=config.ema_decay)
    step = make_train_step(make_loss(config, affine), optimizer, ema_decay=config.ema_decay)
    step, batch = jax.jit(step), batch_of(config, 8)
    for _ in range(2):
        state, metrics = step(state, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    chex.assert_tree_all_finite(state.params)
    moved = jax.tree.map(lambda old, new: float(jnp.abs(old - new)), before, state.params)
    assert min(moved.values()) > 0


@pytest.mark.slow
def test_a_learned_schedule_is_trained_with_the_network_and_sampled_from():
    config = CONFIGS["cifar10_vdm"]
    schedule = "learned_logsnr(start=13.3, end=-5.0, num_features=8)"
    diffusion = dataclasses.replace(config.diffusion, schedule=schedule)
    config = dataclasses.replace(config, network=CONFIGS["digits"].network, diffusion=diffusion)
    least = {"scale": jnp.array(0.1), "shift": jnp.array(0.1)}
    params = {"network": least, "schedule": make_schedule(diffusion).params}
    apply = lambda params, *inputs, **rest: affine(params["network"], *inputs, **rest)

    optimizer = make_optimizer(config.optimizer, config.num_steps)
    state = init_train_state(params, optimizer, ema_decay=config.ema_decay)
    step = make_train_step(make_loss(config, apply), optimizer, ema_decay=config.ema_decay)
    state, metrics = jax.jit(step)(state, batch_of(config, 8), jax.random.key(1))
    assert set(metrics) == {"loss", "prior", "diffusion", "reconstruction", "grad_norm"}
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(state.params)):
        assert np.all(np.isfinite(new))
        assert np.all(new != old)

    def sampler(spacing):
        network = Functional(lambda key: params, apply)
        options = sampling_defaults(config, num_steps=4, spacing=spacing)
        generate = make_sampler(config, network, options, make_mesh())
        return lambda params: generate(params, jax.random.key(0), jnp.arange(2), jnp.arange(2))

    ends = state.params["schedule"]["ends"]
    moved = state.params | {"schedule": state.params["schedule"] | {"ends": 0.5 * ends}}
    draw = sampler("trailing")
    first, second = draw(state.params), draw(moved)
    chex.assert_tree_all_finite(first)
    assert np.abs(first - second).max() > 0.1
    with pytest.raises(ValueError, match=r"karras\(smallest=0.002, largest=100\)"):
        sampler("karras")(params)


def test_a_learned_schedule_is_trained_on_the_bound_alone():
    config = CONFIGS["cifar10_vdm"]
    wrong = dataclasses.replace(config.diffusion, weight="simple")
    with pytest.raises(ValueError, match=r"set diffusion\.weight to likelihood"):
        make_loss(dataclasses.replace(config, diffusion=wrong), affine)


@pytest.mark.parametrize(
    ("schedule", "num_steps"), [("variance_exploding", 1), ("variance_exploding", 5), ("flow", 1)]
)
def test_as_many_steps_are_taken_as_asked_for(schedule, num_steps):
    diffusion = dataclasses.replace(CONFIGS["digits"].diffusion, schedule=schedule)
    levels = make_levels(SampleOptions(num_steps=num_steps), make_schedule(diffusion))
    assert levels.sigma.shape == (num_steps + 1,)
    assert float(levels.sigma[-1]) == 0.0


def test_a_spacing_of_ratios_cannot_begin_at_pure_noise_by_itself():
    schedule = make_schedule(dataclasses.replace(CONFIGS["digits"].diffusion, schedule="cosine"))
    with pytest.raises(ValueError, match=r"would begin at pure noise; .* karras\(largest=100\)"):
        make_levels(SampleOptions(spacing="karras"), schedule)
    levels = make_levels(SampleOptions(num_steps=4, spacing="karras(largest=9)"), schedule)
    np.testing.assert_allclose(levels.sigma[0] / levels.alpha[0], 9.0, rtol=1e-5)


def test_steps_of_the_configuration_belong_to_its_solver():
    config = CONFIGS["digits_edm"]
    assert sampling_defaults(config).num_steps == 18
    assert sampling_defaults(config, solver="ddim").num_steps is None
    assert sampling_defaults(config, solver="ddim", num_steps=7).num_steps == 7
