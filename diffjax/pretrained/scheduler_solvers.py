"""What diffusers' settings mean: the limits of x0, and the solver of each class.

A function `read_...` takes (config, limit, levels, **options): the settings, the transform of
denoisers that they ask for, the levels of the run, and the options of the scheduler's step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.core.keys import normal_each
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser, LearnedVariance
from diffjax.core.sampling import Solver, stateless
from diffjax.core.schedules import edm_sigmas, linear, variance_exploding
from diffjax.pretrained import scheduler_grids as grids
from diffjax.pretrained import scheduler_tables as tables
from diffjax.pretrained.weights import UnsupportedError
from diffjax.solvers import (
    Churn,
    ancestral,
    ancestral_update,
    block_orders,
    ddim,
    ddim_inversion,
    dpm2,
    dpm_multistep,
    dpm_sde,
    dpm_singlestep,
    euler,
    euler_ancestral,
    euler_maruyama,
    heun,
    langevin,
    lms,
    lower_final_orders,
    plms,
    predictor_corrector,
    renoise,
    reverse_diffusion,
    sa_solver,
    tcd,
    unipc,
)
from diffjax.transforms import clip_denoised, dynamic_threshold

Config = Mapping[str, Any]


def limit_of(config: Config) -> Callable[[Denoiser], Denoiser]:
    """The transform of denoisers that the config asks for; the identity if it asks for none."""
    if config.get("thresholding"):
        quantile, most = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        return lambda denoise: dynamic_threshold(denoise, quantile, max_value=most)
    if config.get("clip_sample"):
        most = config["clip_sample_range"]
        return lambda denoise: clip_denoised(denoise, -most, most)
    return lambda denoise: denoise


def no_limit(config: Config) -> Callable[[Denoiser], Denoiser]:
    return lambda denoise: denoise


def limited(
    solver: Solver, limit: Callable[[Denoiser], Denoiser], *, keep_variance: bool = False
) -> Solver:
    """The solver, asking a denoiser whose estimates are limited; a learned variance is dropped."""

    def step(keys, x, state, denoise, current, next_, **planned):
        def estimate(x, level):
            limited = limit(denoise)(x, level)
            if isinstance(limited, LearnedVariance) and not keep_variance:
                return limited.x0
            return limited

        return solver.step(keys, x, state, estimate, current, next_, **planned)

    return solver._replace(step=step)


def read_ddpm(config, limit, levels, **options):
    names = {
        "fixed_small": "fixed_small",
        "fixed_small_log": "fixed_small",
        "fixed_large": "fixed_large",
        "learned_range": "learned_range",
    }
    name = config["variance_type"]
    if name not in names:
        raise UnsupportedError(f"variance_type is {name!r}; supported: {', '.join(names)}.")
    return limited(ancestral(names[name], **options), limit, keep_variance=True)


def read_ddim(config, limit, levels, *, eta=0.0, use_clipped_model_output=False, **options):
    if use_clipped_model_output:
        return limited(ddim(eta, **options), limit)

    return ddim(eta, limit=_limit_x0(limit, levels), **options)


def _limit_x0(limit: Callable[[Denoiser], Denoiser], levels) -> Callable:
    """A limit as a function of x0: limits look at the estimate alone, not at where it was made."""
    return lambda x0: limit(lambda x, level: x0)(x0, levels)


def read_ddim_inversion(config, limit, levels):
    if config["prediction_type"] == "sample":
        raise UnsupportedError(
            "DDIMInverseScheduler is supported for epsilon and v_prediction: an estimate of x0 "
            "says nothing of the noise at the clean end."
        )
    held = "v" if config["prediction_type"] == "v_prediction" else "eps"
    return ddim_inversion(held, limit=_limit_x0(limit, levels))


def _churn(config, levels, s_churn=0.0, **options) -> Churn | None:
    if not s_churn:
        return None
    return Churn(tables.floored_table(config), len(levels.t) - 1, s_churn, **options)


def read_euler(config, limit, levels, *, normal=normal_each, **options):
    return limited(euler(_churn(config, levels, **options), normal=normal), limit)


def read_euler_ancestral(config, limit, levels, **options):
    return limited(euler_ancestral(**options), limit)


def read_heun(config, limit, levels):
    return limited(heun(), limit)


def read_flow_euler(config, limit, levels, **options):
    return renoise(**options) if config["stochastic_sampling"] else euler(**options)


def read_flow_heun(config, limit, levels):
    return heun(slope="velocity")


def read_edm_euler(config, limit, levels, *, normal=normal_each, s_churn=0.0, **options):
    churn = None
    if s_churn:
        schedule, num_steps = edm_schedule(config), len(levels.t) - 1
        churn = Churn(schedule, num_steps, s_churn, **options)
    return euler(churn, normal=normal)


def edm_schedule(config):
    rho = config["rho"]
    return edm_sigmas(config["sigma_min"], config["sigma_max"], rho)


def _algorithm(config) -> tuple[str, str]:
    """The algorithm of the DPM family and its rule for the second order.

    A config that another class of the family saved may name that one's: it then means this one's.
    """
    name, rule = config["algorithm_type"], config["solver_type"]
    deis = config.get("is_deis", False)
    noisy = () if deis else ("sde-dpmsolver", "sde-dpmsolver++")
    known = ("dpmsolver", "dpmsolver++", *noisy, "deis")
    if name not in known:
        raise UnsupportedError(f"algorithm_type is {name!r}; supported: {', '.join(known)}.")
    if rule not in ("midpoint", "heun", "logrho", "bh1", "bh2"):
        raise UnsupportedError(f"solver_type is {rule!r}; supported: midpoint, heun, logrho.")
    if deis:
        return "deis", "exact"
    return "dpmsolver++" if name == "deis" else name, "exact" if rule == "heun" else "midpoint"


def _dpm_options(config, levels):
    """Arguments of the solver that the DPM family's settings share, and the orders of the steps."""
    order, num_steps = config["solver_order"], len(levels.t) - 1
    algorithm, rule = _algorithm(config)
    options = {
        "predict": "x0" if algorithm.endswith("++") else "eps",
        "stochastic": algorithm.startswith("sde"),
        "rule": rule,
    }
    orders = np.full(num_steps, order)
    if config["lower_order_final"] and num_steps < 15:
        orders = lower_final_orders(num_steps, order)
    if config.get("euler_at_final") or config["final_sigmas_type"] == "zero":
        orders[-1] = 1
    return options, orders


def read_dpm_multistep(config, limit, levels, *, begin=0, **more):
    options, orders = _dpm_options(config, levels)
    options |= {"orders": orders[begin:], **more}
    return limited(dpm_multistep(config["solver_order"], **options), limit)


def read_dpm_singlestep(config, limit, levels, *, begin=0, **more):
    order, num_steps = config["solver_order"], len(levels.t) - 1
    options, _ = _dpm_options(config, levels)
    # diffusers lowers the order, whatever the config says, where the blocks do not fit
    lower = config["lower_order_final"] or num_steps % order != 0
    orders = block_orders(num_steps, order, lower_final=lower)
    if config["final_sigmas_type"] == "zero":
        orders[-1] = 1
    return limited(dpm_singlestep(order, orders=orders[begin:], **options, **more), limit)


def read_unipc(config, limit, levels, *, begin=0):
    if config["solver_p"] is not None:
        raise UnsupportedError("UniPCMultistepScheduler: another predictor (solver_p) is not read.")
    order, num_steps = config["solver_order"], len(levels.t) - 1
    orders = np.full(num_steps, order)
    if config["lower_order_final"]:
        orders = lower_final_orders(num_steps, order)
    correct = ~np.isin(np.arange(num_steps), config["disable_corrector"])
    solver = unipc(
        order,
        predict="x0" if config["predict_x0"] else "eps",
        variant="bh1" if config["solver_type"] == "bh1" else "bh2",
        orders=orders[begin:],
        correct=correct[begin:],
    )
    return limited(solver, limit)


def read_sa(config, limit, levels, *, begin=0, tau=None, **options):
    predictions = {"data_prediction": "x0", "noise_prediction": "eps"}
    name, num_steps = config["algorithm_type"], len(levels.t) - 1
    if name not in predictions:
        raise UnsupportedError(f"algorithm_type is {name!r}; supported: {', '.join(predictions)}.")
    if config["tau_func"] is not None:
        raise UnsupportedError(
            "tau_func is Python code; give the solver a function of levels, tau."
        )
    order = config["predictor_order"], config["corrector_order"]
    solver = sa_solver(
        *order,
        predict=predictions[name],
        tau=noise_in_between if tau is None else tau,
        orders=np.arange(num_steps, 0, -1)[begin:] if config["lower_order_final"] else None,
        **options,
    )
    return limited(solver, limit)


def noise_in_between(level):
    """SA-Solver's default: the SDE for time steps from 200 to 800, the ODE before and after."""
    return jnp.where((level.t >= 200) & (level.t <= 800), 1.0, 0.0)


def read_lms(config, limit, levels, *, order=4):
    return limited(lms(order), limit)


def read_dpm2(config, limit, levels):
    return limited(dpm2(tables.floored_table(config)), limit)


def read_dpm2_ancestral(config, limit, levels, **options):
    return limited(dpm2(tables.floored_table(config), eta=1.0, **options), limit)


def read_dpm_sde(config, limit, levels, **options):
    return limited(dpm_sde(tables.floored_table(config), **options), limit)


def read_pndm(config, limit, levels):
    if config["prediction_type"] not in ("epsilon", "v_prediction"):
        raise UnsupportedError("PNDMScheduler is supported for epsilon and v_prediction.")
    return plms(
        slope="v" if config["prediction_type"] == "v_prediction" else "eps",
        start="two_calls" if config["skip_prk_steps"] else "runge_kutta",
        schedule=tables.table(config),
    )


def pndm_levels(config, schedule, num_steps: Any = None):
    if not config["skip_prk_steps"] and num_steps < 4:
        raise ValueError(
            f"num_steps is {num_steps}; PNDM with Runge-Kutta steps needs at least 4. "
            "Set skip_prk_steps."
        )
    return grids.integer_levels(config, schedule, num_steps)


def read_ipndm(config, limit, levels):
    return plms(start="one_call")


def sine_schedule(u):
    """IPNDM's levels, whose clock is the angle of alpha and sigma."""
    sine = jnp.sin(0.5 * jnp.pi * u)
    sigma = sine**2
    # 1 - sin^4 = cos^2 (1 + sin^2)
    alpha = jnp.where(u == 1.0, 0.0, jnp.cos(0.5 * jnp.pi * u) * jnp.sqrt(1.0 + sigma))
    return NoiseLevel(jnp.arctan2(sigma, alpha) * 2.0 / jnp.pi, alpha, sigma)


def read_sine_schedule(config):
    if config["trained_betas"] is not None:
        raise UnsupportedError("trained_betas is a list; supported: None, for IPNDM's own sigmas.")
    return sine_schedule


def read_lcm(config, limit, levels, **options):
    return limited(renoise(**options), limit)


def read_tcd(config, limit, levels, *, eta=0.3, **options):
    return tcd(tables.table(config), eta, **options)


def boundary(config) -> Callable[[Denoiser], Denoiser]:
    """LCM's boundary condition: near t = 0 the denoiser returns its input."""
    limit, scaling = limit_of(config), config["timestep_scaling"]

    def transform(denoise: Denoiser) -> Denoiser:
        limited = limit(denoise)

        def consistent(x, level):
            norm = jnp.hypot(level.t * scaling, 0.5)
            return (0.5 / norm) ** 2 * x + level.t * scaling / norm * limited(x, level)

        return consistent

    return transform


def read_consistency(config, limit, levels, **options):
    floor, s_noise = config["sigma_min"], config["s_noise"]
    return limited(renoise(floor=floor, s_noise=s_noise, **options), limit)


def read_wuerstchen(config, limit, levels, *, normal=normal_each):
    def step(keys, x, denoise, current, next_):
        # the last level holds a trace of noise, but the step to it adds none
        noise = jnp.where(next_.t > 0, normal(keys, x.shape[1:], x.dtype), 0.0)
        return ancestral_update(x, denoise(x, current), noise, current, next_)

    return stateless(step)


def clipped_cosine(config):
    """Wuerstchen's schedule: the cosine in a time of its own, away from both of its ends."""
    scaler, offset = config["scaler"], config["s"]

    def schedule(t):
        t = jnp.asarray(t)
        scaled = 1.0 - (1.0 - t) ** scaler if scaler > 1 else t**scaler
        start, here = (
            jnp.cos((u + offset) / (1 + offset) * jnp.pi / 2) ** 2 for u in (0.0, scaled)
        )
        signal = jnp.clip(here / start, 0.0001, 0.9999)
        return NoiseLevel(t, jnp.sqrt(signal), jnp.sqrt(1.0 - signal))

    return schedule


def read_score_sde_ve(config, limit, levels, **options):
    corrector = langevin(config["snr"], config["correct_steps"], **options)
    normal = {"normal": options["normal"]} if "normal" in options else {}
    return predictor_corrector(reverse_diffusion(**normal), corrector)


def exploding_schedule(config):
    return variance_exploding(config["sigma_min"], config["sigma_max"])


def read_score_sde_vp(config, limit, levels, **options):
    return euler_maruyama(rate_schedule(config), **options)


def rate_schedule(config):
    return linear(config["beta_min"], config["beta_max"])


def read_karras_ve(config, limit, levels, **options):
    names = {"s_churn": "s_churn", "s_min": "s_tmin", "s_max": "s_tmax", "s_noise": "s_noise"}
    churn = {name: config[key] for key, name in names.items()}
    return heun(Churn(exploding_schedule(config), len(levels.t) - 1, **churn), **options)


def ratio_scale(config, levels):
    """The family's first noise: unit variance for "leading", that of the noise alone otherwise."""
    return 1.0 if config["timestep_spacing"] == "leading" else levels.sigma[0]
