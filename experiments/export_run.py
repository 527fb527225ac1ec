"""Write a trained run as a folder in the format of diffusers.

    python experiments/export_run.py --workdir runs/cifar10 --output cifar10
    python experiments/text_to_image.py --model cifar10

    model_index.json                        DDIMPipeline; LDMPipeline for runs in latent space;
                                            DDPMPipeline where the variance was learned
    unet/                                   an average of the weights
    vqvae/                                  the autoencoder of a run in latent space
    scheduler/scheduler_config.json         the betas, what the network predicts, the grid

diffusers loads it too. Its format holds UNets of whole pixels under tables of betas: a run with
another network or schedule is refused with the reason.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autoencoding import FOLDER, load_autoencoder
from cli import parse_args, run_script
from config import Config
from diffjax.core.schedules import Table
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig
from diffjax.pretrained import save_model
from diffjax.pretrained.components import MODEL_INDEX
from diffjax.pretrained.schedulers import SCHEDULER_FILE
from diffjax.training import make_mesh
from finetuning import save_folder
from model import make_schedule
from runs import Run, load_run, network_config

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@dataclass(frozen=True, kw_only=True)
class Args:
    """Write a trained run as a folder in the format of diffusers."""

    workdir: Path
    """the run folder"""
    output: Path
    """the new folder"""
    checkpoint: int | None = None
    """step of the checkpoint; by default the newest"""
    ema: str | None = None
    """which weight average, such as 0.9999; by default the first of the run"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the weights"""


def export_run(run: Run, workdir: Path, output: Path, *, dtype: str = "float32") -> None:
    """Write the folder of a system.

    Args:
      run: the network and its configuration.
      workdir: the run folder, of which the autoencoder is copied where there is one.
      output: a folder that is not there yet.
      dtype: of the weights.

    Raises:
      ValueError: the format cannot hold the run; `UnsupportedError` if it cannot hold the network.
    """
    if run.config.network.context is not None:
        raise ValueError("the format holds no system whose text encoder was trained here")
    if run.config.experts.boundaries:
        raise ValueError("the format holds one network, and the run has experts")
    scheduler = scheduler_settings(run.config)
    latent = run.config.latents is not None
    ancestral = scheduler["_class_name"] == "DDPMScheduler"
    kind = "LDMPipeline" if latent else "DDPMPipeline" if ancestral else "DDIMPipeline"
    index = {
        "_class_name": kind,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    if latent:
        variational = isinstance(load_autoencoder(workdir / FOLDER).config, AutoencoderKLConfig)
        index["vqvae"] = ["diffusers", "AutoencoderKL" if variational else "VQModel"]

    def write(draft: Path) -> None:
        save_model(draft / "unet", network_config(run.config), run.params, dtype=dtype)
        if latent:
            shutil.copytree(workdir / FOLDER, draft / "vqvae")
        (draft / "scheduler").mkdir()
        (draft / "scheduler" / SCHEDULER_FILE).write_text(json.dumps(scheduler, indent=2) + "\n")
        (draft / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n")

    save_folder(output, write)


def scheduler_settings(config: Config) -> dict[str, Any]:
    """The content of scheduler_config.json for a run: DDIM's, or DDPM's for a learned variance."""
    diffusion, schedule = config.diffusion, make_schedule(config.diffusion)
    if not isinstance(schedule, Table) or not np.allclose(schedule.alpha[0], 1.0):
        raise ValueError(f"schedule {diffusion.schedule} is no table of betas, as the format needs")
    if not np.allclose(schedule.alpha**2 + schedule.sigma**2, 1.0):
        raise ValueError(f"schedule {diffusion.schedule} does not preserve the variance")
    if diffusion.prediction not in PREDICTIONS:
        raise ValueError(
            f"prediction {diffusion.prediction} is not one of {', '.join(PREDICTIONS)}, which the "
            "format knows"
        )
    signal = schedule.alpha**2
    settings = {
        "num_train_timesteps": schedule.num_train_steps,
        "trained_betas": (1.0 - signal[1:] / signal[:-1]).tolist(),
        "prediction_type": PREDICTIONS[diffusion.prediction],
        "timestep_spacing": "trailing",
        "clip_sample": config.sampling.clip,
    }
    if diffusion.learn_variance:
        return {"_class_name": "DDPMScheduler", **settings, "variance_type": "learned_range"}
    return {"_class_name": "DDIMScheduler", **settings, "set_alpha_to_one": True, "steps_offset": 0}


def main() -> None:
    args = parse_args(Args, description=__doc__)
    if args.output.exists():
        raise FileExistsError(f"--output {args.output} is there already; name a new folder")
    run = load_run(args.workdir, make_mesh(), step=args.checkpoint, ema=args.ema, latents=True)
    export_run(run, args.workdir, args.output, dtype=args.dtype)
    print(f"Wrote step {run.step} of {args.workdir} to {args.output}")


if __name__ == "__main__":
    run_script(main)
