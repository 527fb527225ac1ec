"""The denoiser that a run's sampling asks for: conditions, guidance, clipping."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

import diffjax as dj
from choices import load_function
from compositions import with_and_without, with_condition
from config import Config
from diffjax.core.conditioning import Condition
from diffjax.core.parameterizations import Denoiser, map_x0
from diffjax.networks import Functional
from diffjax.transforms.estimates import Estimates
from guidances import Guidance, Guides
from model import SampleOptions, make_parameterization
from runs import other_network

NO_GUIDES = Guides()


def sampling_denoiser(
    config: Config,
    network: Functional,
    options: SampleOptions,
    text: Condition | None = None,
    classifier: Functional | None = None,
) -> Callable[..., Any]:
    """`denoiser(params, labels, texts=None, guides=Guides())`, guided as the options say.

    For a guidance that is the solver's it makes both estimates instead. Call it inside the jitted
    function, so that params are not compiled in as constants. Where conditions are composed, labels
    or texts have an axis for them behind that of the batch.

    Args:
      config: of the run.
      network: its network.
      options: of sampling.
      text: for runs with text, what guidance leads away from: the empty text or a negative prompt.
      classifier: of noisy images, to guide too; its weights come with the guides.
    """
    guidance, told = options.read_guidance(), conditional(config, options, text)
    if guidance is None:
        lean = lambda params, conditioning, guides: told(network, params, conditioning)
    else:
        lean = leaning(guidance, told, config, network, options)

    def denoiser(params, labels, texts=None, guides=NO_GUIDES) -> Any:
        conditioning = conditioning_of(labels, texts)
        denoise = lean(params, conditioning, guides)
        if guidance is not None and guidance.solver is not None:
            return denoise
        if classifier is not None:
            log_prob = dj.class_log_prob(
                classifier.apply, guides.classifier, conditioning["labels"]
            )
            scale = options.classifier_scale
            denoise = dj.classifier_guidance(denoise, log_prob, guidance_scale=scale)
        denoise = by_loss(denoise, options)
        return dj.clip_denoised(denoise) if options.clip else denoise

    return denoiser


def conditioning_of(labels: Any, texts: dict[str, Any] | None) -> dict[str, Any]:
    """What the network of a run is told: arrays [B, ...] by their names."""
    return {**(texts or {}), **({} if labels is None else {"labels": labels})}


def conditional(
    config: Config, options: SampleOptions, text: Condition | None
) -> Callable[..., Any]:
    """`told(network, params, conditioning)`, the estimate under the conditions.

    With `how=with_and_without`, that and the one under none.
    """
    plain = plain_denoiser(config, options)
    nulls = [Condition({"labels": config.network.num_classes or 0})] if text is None else [text]

    def told(network: Functional, params, conditioning, how=with_condition) -> Any:
        return how(partial(plain, network, params), conditioning, nulls, options.weights)

    return told


def leaning(
    guidance: Guidance,
    told: Callable[..., Any],
    config: Config,
    network: Functional,
    options: SampleOptions,
) -> Callable[..., Any]:
    """`lean(params, conditioning, guides)`, the estimate led away from a weaker one.

    For a guidance that is the solver's, both estimates.
    """
    other, read_map = other_network(config, network, guidance.weaker), attention_reader(config)
    combine = partial(guidance.combine, guidance_scale=options.guidance_scale)

    def lean(params, conditioning, guides: Guides) -> Any:
        better = told(network, params, conditioning)
        if guidance.weaker == "unconditional":
            both = told(network, params, conditioning, with_and_without)
            if guidance.solver is not None:
                return clip_all(both) if options.clip else both
            guided = dj.guide(both, combine)
        else:
            weights = params if guides.weaker is None else guides.weaker
            build = read_map if guidance.weaker == "attention_map" else told
            guided = combine(better, build(other, weights, conditioning))
        if options.guidance_interval is None:
            return guided
        low, high = options.guidance_interval
        return dj.guidance_interval(guided, better, low=low, high=high)

    return lean


def by_loss(denoise: Denoiser, options: SampleOptions) -> Denoiser:
    """The denoiser, guided by the loss that the options name, if they do."""
    if options.loss is None:
        return denoise
    loss = load_function("--loss", options.loss)
    denoise = dj.forward_guidance(denoise, loss, strength=options.loss_strength)
    return dj.backward_guidance(denoise, loss, step_size=options.loss_step_size)


def plain_denoiser(config: Config, options: SampleOptions) -> Callable[..., Any]:
    """`plain(network, params, **conditioning)`, a denoiser without guidance."""
    parameterization = make_parameterization(config.diffusion)

    def plain(network: Functional, params, **conditioning) -> Any:
        settings = (network.apply, params, parameterization)
        if not config.diffusion.learn_variance:
            return dj.make_denoiser(*settings, **conditioning)
        denoise = dj.make_learned_variance_denoiser(*settings, **conditioning)
        return denoise if options.ancestral else lambda x, level: denoise(x, level).x0

    return plain


def attention_reader(config: Config) -> Callable[..., Any]:
    """`read(network, params, conditioning)`, the attention map (x, level) -> [B, *coarse]."""
    parameterization = make_parameterization(config.diffusion)

    def read(network: Functional, params, conditioning) -> Any:
        return lambda x, level: dj.parameterizations.run_network(
            network.apply, params, parameterization, x, level, **conditioning
        )

    return read


def clip_all(estimates: Estimates) -> Estimates:
    """Several estimates of x0, each clipped to [-1, 1]."""
    clip = lambda x0: jnp.clip(x0, -1.0, 1.0)
    return lambda x, level: tuple(map_x0(clip, each) for each in estimates(x, level))
