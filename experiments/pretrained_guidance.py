"""The guidance of saved models: rows of guidances.py for the systems of diffjax.pipelines.

--guidance apg --guidance-scale 7 --guidance-interval 0.3 5
--guidance perturbed_attention --guidance-scale 4 --prompt-scale 7
--guidance autoguidance --weaker FOLDER --guidance-scale 2
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import diffjax as dj
from choices import build, listed
from diffjax import pipelines
from diffjax.core.parameterizations import Denoiser
from diffjax.pipelines import System
from diffjax.pipelines.weaker import WEAKER
from diffjax.pretrained import Components, load_model, read_scheduler
from diffjax.pretrained.scheduler_solvers import limited
from guidances import GUIDANCES, Guidance, check_interval, read_guidance

# the part of a folder that denoises
DENOISING = ("unet", "transformer")


def static(*, low: float = -1.0, high: float = 1.0) -> Callable[[Denoiser], Denoiser]:
    """Estimates of x0 are clipped."""
    return partial(dj.clip_denoised, low=low, high=high)


def dynamic(
    *, quantile: float = 0.995, max_value: float = float("inf")
) -> Callable[[Denoiser], Denoiser]:
    """They are clipped at a quantile of each, and divided by it."""
    return partial(dj.dynamic_threshold, quantile=quantile, max_value=max_value)


THRESHOLDS: dict[str, Callable[..., Callable[[Denoiser], Denoiser]]] = {
    "static": static,
    "dynamic": dynamic,
}


@dataclass(frozen=True, kw_only=True)
class GuidanceArgs:
    """How much what is asked for counts, and in which way."""

    guidance: Annotated[str, listed("how to guide", GUIDANCES)] = "classifier_free"
    guidance_scale: float = 7.0
    """of it, or what a distilled network is told; 1 is off (cfg_plus_plus takes 0 to 1)"""
    guidance_interval: tuple[float, float] | None = None
    """where to guide, low < sigma / alpha <= high; elsewhere only the prompt counts"""
    guidance_rescale: float = 0.0
    """against over-exposure: share of the guided estimate that gets the spread of the other"""
    prompt_scale: float = 1.0
    """of classifier-free guidance beside perturbed_attention, self_attention, blurred or
    autoguidance, which do not lead away from the negative prompt; 1 is off"""
    weaker: Path | None = None
    """folder of a worse model under the same prompts, which autoguidance leads away from"""
    threshold: Annotated[str | None, listed("limit of the estimates of x0", THRESHOLDS)] = None


def read(args: GuidanceArgs) -> Guidance | None:
    """The guidance that the settings name; None where it is off."""
    return read_guidance(args.guidance, args.guidance_scale, args.guidance_interval)


def check_guidance(args: GuidanceArgs) -> None:
    """Refuse before any work settings that contradict each other."""
    check_interval(args.guidance_interval)
    guidance = build("guidance", args.guidance, GUIDANCES)
    read(args)
    if args.guidance == "classifier_free" and args.guidance_scale == 0.0:
        what = "shows what the model makes without the prompt; 1 is off"
        warnings.warn(f"--guidance-scale 0 {what}", stacklevel=2)
    if guidance.checkpoint is not None:
        raise ValueError("a saved model has no checkpoints; give autoguidance a --weaker FOLDER")
    if (guidance.weaker == "checkpoint") != (args.weaker is not None):
        raise ValueError("--guidance autoguidance and --weaker FOLDER need each other")
    if guidance.weaker == "unconditional" and args.prompt_scale != 1.0:
        raise ValueError(f"of --guidance {args.guidance} the scale is --guidance-scale alone")
    if guidance.solver is not None and args.guidance_rescale:
        raise ValueError(f"--guidance-rescale does not go with --guidance {args.guidance}")


def compares_prompts(args: GuidanceArgs) -> bool:
    """Whether the estimate without the prompt, or under a negative one, is needed."""
    guidance = read(args)
    leads_away = guidance is not None and guidance.weaker == "unconditional"
    return leads_away or args.prompt_scale != 1.0


def load_weaker(args: GuidanceArgs, parts: Components, **options: Any) -> Components:
    """The parts and, as the part `WEAKER`, the network of a worse model.

    options: of `load_model`.
    """
    if args.weaker is None:
        return parts
    name = _denoising_part(parts)
    model, mine = load_model(args.weaker / name, **options), parts.models[name]
    predicted = read_scheduler(args.weaker / "scheduler").parameterization.name
    wanted = parts.schedulers["scheduler"].parameterization.name
    if predicted != wanted:
        raise ValueError(f"--weaker {args.weaker} predicts {predicted}, the model {wanted}")
    for what in ("in_channels", "context_dim", "context.features"):
        here, there = (_setting(each.config, what) for each in (mine, model))
        if here != there:
            raise ValueError(f"--weaker {args.weaker} has {what} {there}, the model {here}")
    return parts._replace(models={**parts.models, WEAKER: model})


def guided_system(
    args: GuidanceArgs, parts: Components, make: Callable[[Components], System]
) -> System:
    """The system of the parts, with what the guidance looks at beside its own estimates.

    Args:
      make: from parts to a system, for the model as for what it is compared with.
    """
    system, guidance = make(parts), read(args)
    if args.guidance_interval is not None:
        system = pipelines.guided_within(system, *args.guidance_interval)
    kind = None if guidance is None else guidance.weaker
    if kind == "identity_attention":
        return pipelines.beside(system, make(pipelines.without_attention_maps(parts)))
    if kind == "attention_map":
        return pipelines.attentive(system, make(pipelines.showing_attention(parts)))
    if kind == "checkpoint":
        name = _denoising_part(parts)
        models = {**parts.models, name: parts.models[WEAKER]}
        return pipelines.beside(system, make(parts._replace(models=models)), network=name)
    return system


def make_guidance(args: GuidanceArgs, system: System, count: int) -> Callable[..., Denoiser] | None:
    """The guidance as `pipelines.walk` takes it; None where it is off, or is the solver's.

    Args:
      system: from `guided_system`.
      count: how many conditions there are: 1 where the model has no estimate without a prompt.
    """
    guidance = read(args)
    if compares_prompts(args) and count == 1:
        require_defaults(args, "this model has no estimate without a prompt to lead away from")
        return None
    if guidance is not None and guidance.solver is not None:
        return None
    if guidance is None and args.prompt_scale == 1.0:
        return None

    def guide(prompt: Denoiser, *others: Any) -> Denoiser:
        guided = prompt
        if guidance is not None:
            # behind the conditions stands what else the guidance looks at
            other = others[-1] if others else None
            guided = guidance.combine(prompt, other, guidance_scale=args.guidance_scale)
        if args.prompt_scale != 1.0:
            scales = [1.0 - args.prompt_scale, 1.0]
            guided = dj.composed(prompt, [others[0], guided], guidance_scales=scales)
        if not args.guidance_rescale:
            return guided
        row = system.parameterization
        return dj.rescaled(guided, prompt, amount=args.guidance_rescale, parameterization=row)

    return guide


def guided_solver(args: GuidanceArgs, system: System, solver: dj.Solver) -> dj.Solver:
    """The solver under a guidance of solvers, with limited estimates, where that is asked for."""
    guidance = read(args)
    if args.threshold is not None:
        _require_range(args.threshold, system)
        limit = build("--threshold", args.threshold, THRESHOLDS)
        solver = limited(solver, limit, keep_variance=True)
    if guidance is None or guidance.solver is None:
        return solver
    return guidance.solver(solver, guidance_scale=args.guidance_scale)


def require_defaults(args: GuidanceArgs, why: str) -> None:
    """Refuse guidance that would have no effect; its scale may be what a network is told."""
    for field in fields(GuidanceArgs):
        given = getattr(args, field.name)
        if field.name not in ("guidance_scale", "threshold") and given != field.default:
            raise ValueError(f"--{field.name.replace('_', '-')} is {given}, but {why}")


def _denoising_part(parts: Components) -> str:
    for name in DENOISING:
        if name in parts.models:
            return name
    raise ValueError(f"{parts.name} has none of {', '.join(DENOISING)}, which --weaker replaces")


def _setting(config: Any, name: str) -> Any:
    """A setting of a configuration, and None where it has none of that name."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _require_range(threshold: str, system: System) -> None:
    """Refuse limits for data in [-1, 1] where there are latents."""
    of_pixels = system.latent_shape(*system.size)[0] == system.size[0]
    if not of_pixels and not ("low=" in threshold and "high=" in threshold):
        raise ValueError(
            f"--threshold {threshold} is for pixels in [-1, 1], and this is a model of latents; "
            "give it a range, as static(low=-4, high=4), or take --guidance-rescale or apg"
        )
