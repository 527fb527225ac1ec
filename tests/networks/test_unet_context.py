"""Networks that are told more than a clock: contexts, pictures and frames."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffjax.networks import UNetConfig, count_parameters, functional, unet
from diffjax.networks.controlnet import ControlNetConfig, controlnet, sd1_controlnet
from diffjax.networks.t2i_adapter import T2IAdapterConfig, t2i_adapter
from diffjax.networks.unet_attention import SpatialTransformer
from diffjax.networks.unet_conditioning import token_refiner
from diffjax.networks.unet_context import ContextConfig
from diffjax.networks.unet_frames import TemporalTransformer
from diffjax.networks.unet_latent_presets import sd1_unet, sdxl_unet

TINY = UNetConfig(
    block_out_channels=(4, 4),
    layers_per_block=1,
    attention=("transformer", False),
    mid_attention="extended",
    num_groups=2,
    zero_init=False,
    context=ContextConfig(features=6, num_heads=2),
)
X, CLOCK = jax.random.normal(jax.random.key(1), (2, 4, 4, 3)), jnp.full(2, 0.5)
TOKENS = jax.random.normal(jax.random.key(2), (2, 5, 6))


FEATURES = jnp.zeros((2, 4, 4, 4)), jnp.zeros((2, 2, 2, 4))


@pytest.fixture(scope="module", params=[0, 1])
def tiny(request):
    context = dataclasses.replace(TINY.context, refiner_depth=request.param)
    init, apply = unet(dataclasses.replace(TINY, context=context))
    params, apply = init(jax.random.key(0)), jax.jit(apply)
    mask = jnp.ones((2, 5)).at[0, 3:].set(0.0)
    return lambda context=TOKENS, features=FEATURES: apply(
        params, X, CLOCK, context=context, context_mask=mask, features=features
    )


def test_hidden_tokens_are_not_seen_and_others_are(tiny):
    plain, hidden = tiny(), tiny(TOKENS.at[:, 4].add(1.0))
    np.testing.assert_allclose(hidden[0], plain[0], atol=1e-5)
    assert not np.allclose(hidden[1], plain[1], atol=1e-4)


def test_tokens_have_no_order(tiny):
    np.testing.assert_allclose(tiny(TOKENS[:, ::-1])[1], tiny()[1], atol=1e-5)


def test_refined_tokens_tell_of_each_other():
    config = ContextConfig(features=6, num_heads=2, refiner_depth=1)
    init, apply = functional(lambda rngs: nnx.Sequential(*token_refiner(config, rngs)))
    moved = lambda tokens: apply(init(jax.random.key(0)), tokens)[:, 0]
    assert not np.allclose(moved(TOKENS.at[:, 4].multiply(-1.0)), moved(TOKENS), atol=1e-3)


@pytest.mark.parametrize("level", [0, 1])
def test_features_of_an_adapter_join_every_level(tiny, level):
    # a tuple again, so that nothing is compiled again
    moved = tuple(feature + (i == level) for i, feature in enumerate(FEATURES))
    assert not np.allclose(tiny(features=moved), tiny(), atol=1e-3)


def test_arrays_that_are_missing_or_too_many_are_named():
    apply = unet(TINY).apply
    params = jax.eval_shape(unet(TINY).init, jax.random.key(0))
    run = lambda **given: jax.eval_shape(apply, params, X, CLOCK, **given)
    with pytest.raises(ValueError, match="missing: context; unexpected: none"):
        run()
    with pytest.raises(ValueError, match="missing: none; unexpected: pooled"):
        run(context=TOKENS, pooled=jnp.ones((2, 6)))
    residuals = ([jnp.ones((2, 4, 4, 4))], jnp.ones((2, 2, 2, 4)))
    with pytest.raises(ValueError, match="residuals are"):
        run(context=TOKENS, residuals=residuals)
    with pytest.raises(ValueError, match="needs a context"):
        dataclasses.replace(TINY, context=None)


def test_each_block_of_a_transformer_is_recomputed():
    options = {"num_heads": 2, "context_features": 6, "num_groups": 2, "dims": 2, "linear": True}
    network = functional(
        lambda rngs: SpatialTransformer(4, **options, depth=3, remat=True, zero=False, rngs=rngs)
    )
    params = jax.eval_shape(network.init, jax.random.key(0))
    x = jnp.ones((2, 4, 4, 4))
    trace = jax.make_jaxpr(network.apply)(params, x, TOKENS)
    assert [each.primitive.name for each in trace.eqns].count("remat2") == 3


def test_a_unet_takes_the_residuals_of_a_controlnet():
    control, network = controlnet(ControlNetConfig(TINY, condition_widths=(2, 4))), unet(TINY)
    shapes = lambda each: jax.eval_shape(each.init, jax.random.key(0))
    told = {"context": TOKENS, "condition": jnp.ones((2, 8, 8, 3))}
    residuals = jax.eval_shape(control.apply, shapes(control), X, CLOCK, **told)
    assert [each.shape[1] for each in residuals[0]] == [4, 4, 2, 2]
    run = lambda params, residuals: network.apply(
        params, X, CLOCK, context=TOKENS, residuals=residuals
    )
    assert jax.eval_shape(run, shapes(network), residuals).shape == X.shape


def test_a_picture_of_another_size_is_refused():
    config = ControlNetConfig(TINY, condition_widths=(2, 4))
    init, apply = controlnet(config)
    params = jax.eval_shape(init, jax.random.key(0))
    told = {"context": TOKENS, "condition": jnp.ones((2, 4, 4, 3))}
    with pytest.raises(ValueError, match=r"it must be \(2, 8, 8, 3\)"):
        jax.eval_shape(apply, params, X, CLOCK, **told)


def test_adapters_keep_the_last_element_of_an_odd_axis():
    config = T2IAdapterConfig(channels=(2, 2, 2), factor=2, num_blocks=1)
    init, apply = t2i_adapter(config)
    params = jax.eval_shape(init, jax.random.key(0))
    found = jax.eval_shape(apply, params, jnp.ones((1, 10, 6, 3)))
    assert [each.shape[1:3] for each in found] == [(5, 3), (3, 2), (2, 1)]


@pytest.mark.parametrize(("positions", "equal"), [(None, True), (8, False)])
def test_without_positions_frames_have_no_order(positions, equal):
    init, apply = functional(
        lambda rngs: TemporalTransformer(
            4, num_heads=2, depth=1, num_groups=2, max_frames=positions, zero=False, rngs=rngs
        )
    )
    params = init(jax.random.key(0))
    run = jax.jit(lambda x: apply(params, x, 6))
    video = jax.random.normal(jax.random.key(1), (6, 2, 2, 4))
    assert np.allclose(run(video[::-1])[::-1], run(video), atol=1e-5) == equal


def test_published_networks_have_their_number_of_parameters():
    count = lambda network: count_parameters(jax.eval_shape(network.init, jax.random.key(0)))
    assert count(unet(sd1_unet())) == 859_520_964
    assert count(unet(sdxl_unet())) == 2_567_463_684
    assert count(controlnet(sd1_controlnet())) == 361_279_120
