"""Where this project departs from diffusers on purpose: the reference's rule, for each named entry.

Every bridge takes the run of a case and follows it with the reference's rule in the place of ours;
None where the entry does not apply. A gap that a bridge closes is a known difference: it is proven
to come from that rule alone. docs/diffusers_differences.md explains each entry under its name.
"""

import jax.numpy as jnp


def fixed_stride(run):
    """DDPM and DDIM take the next time step as t - T // N, not from the grid."""
    name, options = run.scheduler.name, run.case.settings["set_timesteps"]
    if not name.startswith(("DDPM", "DDIM")) or "num_inference_steps" not in options:
        return None
    schedule = run.scheduler.schedule
    stride = run.scheduler.config["num_train_timesteps"] // options["num_inference_steps"]

    def moved(level):
        return schedule(jnp.maximum(level.t - stride, -1))

    if name == "DDIMInverseScheduler":
        pairs = [(moved(next_), next_) for _, next_ in run.pairs()]
    else:
        pairs = [(current, moved(current)) for current, _ in run.pairs()]
    return run.follow(pairs=pairs)


BRIDGES = {"fixed-stride": fixed_stride}
