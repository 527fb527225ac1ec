"""What a training run is: one frozen dataclass, nothing but data.

A configuration is written once, in `experiments/configs`; every field of it is a flag of
train.py (`--batch-size 64`, `--network.dropout 0.2`), and the run folder keeps it as config.json.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from choices import DENSITIES, PREDICTIONS, RATIOS, SCHEDULES, SPACINGS, listed, unprefixed
from diffjax.core.losses import TIME_SAMPLERS, WEIGHTS
from diffjax.networks import UNetConfig
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig
from diffjax.networks.patch_discriminator import PatchDiscriminatorConfig
from diffjax.solvers import SOLVERS
from diffjax.training.manifest import write_atomically
from guidances import GUIDANCES

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """Which images to train on."""

    name: str = "digits"
    """digits, photos, shapes, folder, npz, or any prepared TFDS set (cifar10, celeb_a, ...)"""
    split: str | None = None
    """split of a TFDS set, such as train[:90%], or of the shapes: train, seen, held_out; by default
    train, and train+test for the digits"""
    path: str | None = None
    """the image folder, the npz file, or the data_dir of TFDS"""
    image_size: int | None = None
    """resize the images to this side"""
    flip: bool = False
    """mirror half of the images at random"""
    num_bins: int = 256
    """values that a number of an image can take, evenly spread: for bits per dimension"""
    long_captions: float = 0.0
    """probability of an image's long caption in the place of the short one; 0.95 in DALL-E 3"""


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process and what the network learns of it.

    A schedule that is learned is trained together with the network, on the variational bound: its
    weight is `likelihood`, and its parameters stand beside the network's.
    """

    schedule: Annotated[str, listed("noise schedule", SCHEDULES)] = "linear_betas"
    num_train_steps: int = 1000
    """length T of a schedule that is a table"""
    zero_terminal_snr: bool = False
    """rescale the table so that its last step is pure noise"""
    shift: float = 1.0
    """factor on sigma / alpha at every time, above 1 for more noise"""
    prediction: Annotated[str, listed("what the network predicts", PREDICTIONS)] = "eps"
    weight: Annotated[str, listed("loss weight, as one on x0", WEIGHTS)] = "simple"
    times: Annotated[str, listed("how training times are drawn", TIME_SAMPLERS)] = "uniform"
    density: Annotated[
        str | None, listed("distribution of training levels, None for the schedule's", DENSITIES)
    ] = None
    learn_variance: bool = False
    """learn the reverse variance with the hybrid loss; doubles network.out_channels"""


@dataclass(frozen=True)
class ExpertsConfig:
    """Networks of one architecture, each for a part of the way from data to noise (eDiff-I)."""

    boundaries: tuple[float, ...] = ()
    """times at which one hands over to the next, of 0 at the data and 1 at the noise; none for a
    single network"""
    overlap: float = 0.0
    """how far beyond its part of the times each is trained"""
    every: tuple[int, ...] = ()
    """each learns from one sample in so many of a batch, the one at the data first; by default 1"""
    weights: tuple[str, ...] = ()
    """loss weight of each, the one at the data first; by default that of diffusion"""

    def __post_init__(self):
        ends = (0.0, *self.boundaries, 1.0)
        if any(low >= high for low, high in pairwise(ends)):
            raise ValueError(
                f"experts.boundaries are {self.boundaries}; they must ascend between 0 and 1."
            )
        if not 0.0 <= self.overlap <= 1.0:
            raise ValueError(f"experts.overlap is {self.overlap}; it must be between 0 and 1.")
        for name in ("every", "weights"):
            given = getattr(self, name)
            if given and (not self.boundaries or len(given) != len(ends) - 1):
                raise ValueError(
                    f"experts.{name} is {given}; needed is one for each of the networks that "
                    f"experts.boundaries part, which are {self.boundaries}, or none."
                )
        if any(every < 1 for every in self.every):
            raise ValueError(f"experts.every is {self.every}; one sample in so many, from 1.")


@dataclass(frozen=True)
class TextConfig:
    """The text encoder of a run with captions, trained on them before the network."""

    features: int = 64
    """of a token"""
    num_layers: int = 2
    """of the transformer, as of that of the image encoder beside which it is trained"""
    num_heads: int = 4
    """of each layer"""
    max_tokens: int = 12
    """of a caption or prompt, the marks of its start and end included"""
    patch_size: int = 4
    """of the image encoder"""
    num_captions: int = 3000
    """captions of which the tokenizer learns its words"""
    batch_size: int = 128
    """images and captions in a step"""
    num_steps: int = 500
    """training steps"""
    learning_rate: float = 1e-3
    """peak learning rate; it ends at 0"""
    cond_drop_prob: float = 0.1
    """probability of the empty caption when the network is trained, for guidance"""


@dataclass(frozen=True)
class LatentsConfig:
    """The latents in which a run diffuses, encoded once and kept on disk."""

    autoencoder: Annotated[str, unprefixed()] = ""
    """folder of the autoencoder: a finished run such as digits_autoencoder, or one that diffusers
    saved"""
    path: str | None = None
    """folder of the encoded images, made if not there; by default latents in the run folder"""
    dtype: Literal["float32", "float16"] = "float32"
    """of the numbers on disk"""


@dataclass(frozen=True)
class AutoencodingConfig:
    """An autoencoder and how it is trained: the task autoencode."""

    network: AutoencoderKLConfig = field(default_factory=AutoencoderKLConfig)
    error: Literal["l1", "l2"] = "l1"
    """of the reconstruction, absolute or squared"""
    kl_weight: float = 1e-6
    """of the divergence of the latents from a standard normal distribution"""
    features: str | None = None
    """MODULE:FUNCTION of yours, from images to layers of features, for a perceptual distance"""
    perceptual_weight: float = 1.0
    """of that distance"""
    discriminator: PatchDiscriminatorConfig | None = None
    discriminator_weight: float = 0.5
    """of its verdict, where its gradient is as strong as that of the error"""
    discriminator_start: int = 50_000
    """steps before it joins"""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optax optimizer."""

    name: str = "adam"
    """any optimizer of optax that takes a learning rate: adam, adamw, sgd, lion, ..."""
    learning_rate: float = 2e-4
    """peak learning rate"""
    warmup_steps: int = 5000
    """steps of linear warm-up"""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """course of the learning rate after the warm-up, down to 0 at the last step"""
    b1: float = 0.9
    """decay of the mean of gradients, for optimizers that have one"""
    b2: float = 0.999
    """decay of the second moment, for optimizers that have one"""
    weight_decay: float = 0.0
    """decoupled weight decay, for optimizers that have it"""
    clip_norm: float | None = 1.0
    """clip the global norm of the gradient; None to leave it"""


@dataclass(frozen=True)
class SamplingConfig:
    """The defaults of sample.py for this run."""

    solver: Annotated[str, listed("solver", SOLVERS)] = "ddim"
    num_steps: int | None = None
    """steps; None for the whole chain with ddpm and 50 for the others"""
    spacing: Annotated[str, listed("levels that are visited", {**SPACINGS, **RATIOS})] = "trailing"
    previews: tuple[str, ...] = ("ddpm", "ddim")
    """solvers whose samples train.py leaves as pictures; the last one's steps are animated"""
    guidance: Annotated[str, listed("guidance", GUIDANCES)] = "classifier_free"
    guidance_scale: float = 1.0
    """of the guidance; 1 is off (but for cfg_plus_plus, whose scale is from 0 to 1)"""
    guidance_interval: tuple[float, float] | None = None
    """where to guide, low < sigma / alpha <= high; None for everywhere"""
    clip: bool = True
    """clip the estimate of the clean image to [-1, 1] in each step"""
    candidates: int = 1
    """images drawn for each one that is kept, the likeliest for its class or caption by the network
    itself; train.py shows the first"""


@dataclass(frozen=True)
class Config:
    """One training run."""

    task: Literal["denoise", "classify", "autoencode"] = "denoise"
    """classify trains the network's way down to tell the class of noisy images; autoencode an
    autoencoder, and not the network"""
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig | None = None
    latents: LatentsConfig | None = None
    autoencoding: AutoencodingConfig | None = None
    network: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: int = 128
    """images in a step, over all devices"""
    num_steps: int = 800_000
    """training steps"""
    ema_decay: tuple[float, ...] = (0.9999,)
    """decays of the weight averages; the first is sampled from"""
    accumulate: int = 1
    """microbatches that a batch is cut into, to save memory"""
    fsdp: bool = False
    """shard parameters and optimizer over the devices instead of copying them"""
    seed: int = 0
    """of the initial parameters, the order of the data and all noise"""

    def __post_init__(self):
        if (self.task == "autoencode") != (self.autoencoding is not None):
            raise ValueError(
                f"task is {self.task}, autoencoding is {self.autoencoding}: an autoencoder is "
                "trained by the task autoencode, and by no other."
            )
        if self.experts.boundaries and (self.task != "denoise" or self.diffusion.density):
            raise ValueError(
                "experts.boundaries part the times of a schedule, and its own distribution of "
                f"levels: task is {self.task} and diffusion.density {self.diffusion.density}, but "
                "must be denoise and None."
            )
        context = self.network.context
        if self.text is not None and (context is None or context.features != self.text.features):
            raise ValueError(
                f"text.features is {self.text.features}, but network.context is {context}: the "
                "network must attend to tokens of as many features."
            )


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out; none of it changes the result."""

    workdir: str | None = None
    """run folder; the default is runs/CONFIG. A folder that holds a run is continued"""
    checkpoint_every: int = 1000
    """steps between checkpoints"""
    keep: int = 3
    """checkpoints to keep"""
    log_every: int = 50
    """steps between lines of metrics.jsonl"""
    sample_every: int | None = None
    """steps between sample grids; None for one at the end"""


def save_config(config: Any, path: Path) -> None:
    """Write a configuration, a dataclass, as JSON."""
    write_atomically(path, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_config(path: Path, cls: type[T] = Config) -> T:
    """Read a configuration of the given class that `save_config` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not JSON, or holds a field that this version does not know.
    """
    try:
        return from_dict(cls, json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{path} not found: is {path.parent} the folder of a run?"
        ) from None
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the configuration of a run: {error}") from None


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Rebuild a dataclass from `dataclasses.asdict`, JSON's lists becoming tuples again."""
    types: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(cls)}
    if unknown := set(values) - set(types):
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}")

    def convert(name, value):
        # an optional part is annotated PART | None
        options = [types[name], *get_args(types[name])]
        parts = [option for option in options if dataclasses.is_dataclass(option)]
        if parts and isinstance(value, dict):
            return from_dict(cast(type, parts[0]), value)
        return _as_tuples(value)

    return cls(**{name: convert(name, value) for name, value in values.items()})


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
