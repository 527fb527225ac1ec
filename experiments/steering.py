"""How a trained run is steered towards what it is asked for, on the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jax.sharding import Mesh

from choices import listed, load_function
from compositions import read_composition
from config import Config
from diffjax.networks import Functional
from guidances import GUIDANCES, Guides
from model import SampleOptions, sampling_defaults
from runs import Run, image_shape, load_run


@dataclass(frozen=True, kw_only=True)
class Steering:
    """Which weights of a run, and the guidance of its estimates."""

    workdir: Path
    """the run folder"""
    checkpoint: int | None = None
    """step of the checkpoint to take; by default the newest"""
    ema: str | None = None
    """which average of the weights, by its decay; by default the first of the configuration"""
    guidance: Annotated[str | None, listed("guidance, by default the run's", GUIDANCES)] = None
    guidance_scale: float | None = None
    """of the guidance; 1 is off (cfg_plus_plus takes 0 to 1); by default as the run's
    configuration says"""
    guidance_interval: tuple[float, float] | None = None
    """where to guide, low < sigma / alpha <= high; by default as the configuration says"""
    negative_prompt: str | None = None
    """what guidance leads away from, for a run with captions; by default the empty text"""
    classifier: Path | None = None
    """folder of a run such as digits_classifier, to guide by its classifier of noisy images"""
    classifier_scale: float = 1.0
    """of the guidance by the classifier: 0 is off; 1 is Bayes' rule for unconditional estimates
    (--guidance-scale 0)"""
    loss: str | None = None
    """MODULE:FUNCTION of yours, from images [B, H, W, C] in [-1, 1] to [B], small where they are as
    wanted, by whose gradient to guide (universal guidance)"""
    loss_strength: float = 1.0
    """of the gradient of the loss through the network; 0 is off"""
    loss_step_size: float = 0.0
    """of ten steps down the loss from each estimate itself; 0 is off"""
    clip: bool | None = None
    """clip estimates of x0 to the range of the data; by default as the configuration says"""


def steering_options(args: Steering, config: Config, **changes: Any) -> SampleOptions:
    """How to sample from a run: as its configuration says, but for the command line and `changes`.

    Raises:
      ValueError: the run has no estimate to lean away from, or two settings exclude each other.
    """
    options = sampling_defaults(
        config,
        guidance=args.guidance,
        guidance_scale=args.guidance_scale,
        guidance_interval=args.guidance_interval,
        classifier_scale=args.classifier_scale,
        loss=args.loss,
        loss_strength=args.loss_strength,
        loss_step_size=args.loss_step_size,
        clip=args.clip,
        **changes,
    )
    condition = config.network if config.text is None else config.text
    guidance, scale = options.read_guidance(), options.guidance_scale
    away = guidance is not None and guidance.weaker == "unconditional"
    if (away or options.weights is not None) and not condition.cond_drop_prob:
        why = "AND composes conditions" if options.weights else f"--guidance-scale is {scale:g}"
        raise ValueError(
            f"{why}, but this run was trained without dropping its condition (cond_drop_prob is "
            "0), so it has no unconditional estimate."
        )
    if args.negative_prompt is not None and config.text is None:
        raise ValueError("--negative-prompt is given, but this run was trained without captions.")
    if args.negative_prompt is not None and not away:
        raise ValueError("--negative-prompt needs guidance: set --guidance-scale above 1.")
    reads_attention = guidance is not None and guidance.weaker == "attention_map"
    if options.weights is not None and (args.classifier is not None or reads_attention):
        other = "--classifier" if args.classifier else f"--guidance {options.guidance}"
        raise ValueError(f"{other} looks at one condition; it does not go with AND.")
    if args.loss is not None:
        load_function("--loss", args.loss)
        if config.latents is not None:
            raise ValueError("--loss reads images, but this run diffuses latents of them.")
    for flag in ("classifier", "loss"):
        given = getattr(args, flag) is not None
        if given and guidance is not None and guidance.solver is not None:
            raise ValueError(f"--{flag} does not go with --guidance {options.guidance}.")
    return options


def load_guides(
    args: Steering, run: Run, options: SampleOptions, mesh: Mesh
) -> tuple[Functional | None, Guides]:
    """The classifier, if there is one, and the weights that guide beside those of the run.

    Raises:
      ValueError: the classifier was trained on other levels or images than the run, or for other
        classes.
    """
    guidance, weaker = options.read_guidance(), None
    if guidance is not None and guidance.weaker == "checkpoint":
        if guidance.checkpoint is None:
            raise ValueError("Which checkpoint? Say --guidance 'autoguidance(checkpoint=1000)'.")
        of_step = load_run(args.workdir, mesh, step=guidance.checkpoint, ema=args.ema, latents=True)
        weaker = of_step.params
    if args.classifier is None:
        return None, Guides(weaker)
    classifier = load_run(args.classifier, mesh, task="classify")
    own, its = what_a_classifier_shares(run.config), what_a_classifier_shares(classifier.config)
    for name in own:
        if own[name] != its[name]:
            raise ValueError(
                f"The classifier was trained with {name} {its[name]}, this run with {own[name]}; "
                "it must have seen the run's classes and images at the run's levels."
            )
    return classifier.network, Guides(weaker, classifier.params)


def what_a_classifier_shares(config: Config) -> dict[str, Any]:
    """The settings in which a run and a classifier that guides it are the same."""
    levels = ("schedule", "num_train_steps", "zero_terminal_snr", "shift")
    return {
        **{f"diffusion.{name}": getattr(config.diffusion, name) for name in levels},
        "network.num_classes": config.network.num_classes,
        "images of": image_shape(config),
    }


def parse_labels(text: str, num_classes: int | None) -> np.ndarray | None:
    """The classes that `--labels` names, or None for a run without classes.

    They are [K] int32, for images that take them in turn, or [1, K] for a composition.
    """
    if num_classes is None:
        if text != "all":
            raise ValueError(f"--labels is {text!r}, but this run was trained without labels.")
        return None
    if text == "all":
        return np.arange(num_classes, dtype=np.int32)
    parts, weights = read_composition(text)
    try:
        labels = [int(part) for part in (text.split(",") if weights is None else parts)]
    except ValueError:
        raise ValueError(
            f'--labels is {text!r}; expected numbers such as 0,1,2 or "3 AND 8", or all.'
        ) from None
    if min(labels) < 0 or max(labels) >= num_classes:
        raise ValueError(f"--labels is {text}; the classes of this run are 0 to {num_classes - 1}.")
    return np.array(labels if weights is None else [labels], np.int32)
