"""What a fine-tuning run is: one frozen dataclass, with defaults for each method."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from choices import listed
from config import DataConfig, OptimizerConfig
from diffjax.core.losses import WEIGHTS
from diffjax.pretrained.lora_adapters import ATTENTION


@dataclass(frozen=True)
class LoraConfig:
    """Changes of low rank."""

    rank: int = 8
    """of each change"""
    alpha: float | None = None
    """the changes are multiplied by alpha / rank; None for the rank, a factor of 1"""
    targets: str = ATTENTION
    """regular expression on the names of the kernels that change; by default all attention"""


@dataclass(frozen=True)
class PriorConfig:
    """DreamBooth's preservation of the prior: the class besides the instance of --prompt."""

    prompt: str | None = None
    """of the class, such as "a photo of a dog"; None for no prior"""
    images: str | None = None
    """folder of pictures of the class; those that are missing are made by the model itself. None
    for a folder in the workdir"""
    num_images: int = 100
    """pictures of the class"""
    weight: float = 1.0
    """of its loss beside that of the instance"""


@dataclass(frozen=True)
class WordConfig:
    """A word whose vectors are learned."""

    token: str = "<new>"
    """the word, as it will stand in prompts"""
    init: str = "object"
    """words whose vectors it starts from, in turn"""
    num_vectors: int = 1
    """vectors, each of which takes the place of a token"""


@dataclass(frozen=True)
class ControlConfig:
    """The pictures that steer a ControlNet."""

    images: str | None = None
    """folder with a picture of the same name for each of the data; None for edges of the data"""


@dataclass(frozen=True)
class PreviewConfig:
    """The pictures that a run leaves."""

    prompt: str | None = None
    """what they show; None for the captions of the first pictures of the data"""
    num_images: int = 4
    """how many, with the same noise every time; 0 for none"""
    num_steps: int = 30
    """steps from noise to image, with the model's own scheduler"""
    guidance_scale: float = 7.0
    """classifier-free guidance; 1 is off"""


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run."""

    method: Annotated[
        Literal["full", "lora", "textual_inversion", "controlnet"],
        tyro.conf.Fixed,
    ]
    """the first word of the command line"""
    model: str = ""
    """a folder with model_index.json, or the name of a repository of the Hugging Face hub"""
    variant: str | None = None
    """which copy of its weights, such as fp16"""
    data: DataConfig = field(default_factory=lambda: DataConfig(name="folder"))
    """pictures, resized to the model's own size unless image_size says otherwise"""
    prompt: str | None = None
    """caption of every picture, in the place of the data's own; the instance of DreamBooth"""
    cond_drop_prob: float = 0.0
    """probability of the null prompt, for guidance"""
    lora: LoraConfig = field(default_factory=LoraConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    word: WordConfig = field(default_factory=WordConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    train_text_encoder: bool = False
    """train the text encoders too, with full or lora"""
    weight: Annotated[
        str | None,
        listed("loss weight, as one on x0; None for the plain error of what is predicted", WEIGHTS),
    ] = None
    noise_offset: float = 0.0
    """of each channel, such as 0.1, for darker and brighter pictures"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 4
    """pictures in a step, over all devices"""
    num_steps: int = 1000
    """training steps"""
    ema_decay: tuple[float, ...] = ()
    """decays of averages of what is trained; the first is what is saved at the end"""
    accumulate: int = 1
    """microbatches that a batch is cut into, to save memory"""
    remat: bool = False
    """compute activations of the network again in the backward pass, to save memory"""
    fsdp: bool = False
    """shard all params over the devices instead of copying them"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation and of what is frozen; what is trained is float32"""
    seed: int = 0
    """of what is new, the order of the data and all noise"""


def _default(method: Any, learning_rate: float, **changes: Any) -> FinetuneConfig:
    optimizer = OptimizerConfig("adamw", learning_rate, warmup_steps=0, weight_decay=1e-2)
    return FinetuneConfig(method, optimizer=optimizer, **changes)


METHODS: dict[str, FinetuneConfig] = {
    "full": _default("full", 1e-5, cond_drop_prob=0.1),
    "lora": _default("lora", 1e-4),
    "textual_inversion": _default("textual_inversion", 5e-4),
    # the ControlNet paper drops half of the prompts: arXiv:2302.05543, section 3.4
    "controlnet": _default("controlnet", 1e-5, cond_drop_prob=0.5),
}
