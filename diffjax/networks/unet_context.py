"""What a UNet is told besides the clock and a label, and how it attends to it."""

from dataclasses import dataclass

# entries of the levels of a UNetConfig: 1 for all levels, or one for each
PerLevel = int | tuple[int, ...]

PROJECTIONS = (None, "text", "image", "text_image")
ADDED = (None, "text", "image", "text_image", "text_time", "image_hint")
NORMS = (None, "layer", "group")

# channels of the hint that joins the input of a network with "image_hint"
HINT_CHANNELS = 4


@dataclass(frozen=True)
class ContextConfig:
    """The context of a UNet: tokens that it attends to, and vectors that join the time's embedding.

    The defaults are those of Stable Diffusion 1. A tuple has an entry for each level, the finest
    first.

    Attributes:
      features: of the tokens, one number for all levels or one for each.
      num_heads: of the transformers, one number or one for each level.
      depth: blocks of a transformer: one number, or for each level a number or a tuple with one
        for each of its layers.
      up_depth: the same on the way up; None as `depth`.
      linear_projection: whether linear layers lead into and out of a transformer, in the place of
        1-wide convolutions; another layout of the same weights.
      image_tokens: how many tokens at the end of the context are those of an image, to which
        transformers attend apart (IP-Adapter, arXiv:2308.06721).
      only_context: whether the first attention of a block sees the context as well as the second,
        and no other positions; for attention "extended", whether it sees the tokens alone. One for
        all levels, or one for each.
      mid_only_context: the same for attention "extended" in the middle.
      norm: of the tokens, in attention "extended": "layer", "group" (of 32 groups) or None.
      projection: how the tokens are made: None as they are given, "text" by a linear layer, "image"
        from an embedding of an image, "text_image" from both.
      projected_features: of what is projected.
      refiner_depth: blocks of a transformer that the tokens pass first, all of them seeing each
        other; it is trained with the network, and tells it which words belong together where the
        tokens come from an encoder that does not (the token refiner of HunyuanVideo,
        arXiv:2412.03603, section 4.2).
      added: what joins the time's embedding: the tokens of the "text", pooled; an embedding of an
        "image", of "text_image" both, or of an image with a hint ("image_hint", a picture 8 times
        as large that joins the input as 4 channels); "text_time" an embedding of the text and
        numbers such as the sizes of SDXL.
      added_features: of what "text_time" joins: the text's and `time_id_features` for each number.
      added_heads: of the pooling of "text".
      time_id_features: waves of each number of "text_time".
      time_cond_features: of a vector that joins the waves of the clock, the guidance scale of
        distilled networks; None for none.
    """

    features: PerLevel = 768
    num_heads: PerLevel = 8
    depth: int | tuple[int | tuple[int, ...], ...] = 1
    up_depth: int | tuple[int | tuple[int, ...], ...] | None = None
    linear_projection: bool = False
    image_tokens: int = 0
    only_context: bool | tuple[bool, ...] = False
    mid_only_context: bool = False
    norm: str | None = None
    projection: str | None = None
    projected_features: int | None = None
    refiner_depth: int = 0
    added: str | None = None
    added_features: int | None = None
    added_heads: int = 64
    time_id_features: int | None = None
    time_cond_features: int | None = None

    def __post_init__(self):
        for name, choices in (("projection", PROJECTIONS), ("added", ADDED), ("norm", NORMS)):
            value = getattr(self, name)
            if value not in choices:
                known = ", ".join(map(repr, choices))
                raise ValueError(f"context.{name} is {value!r}; it must be one of {known}")
        needed = {
            "projected_features": self.projection is not None
            or self.added in ("image", "image_hint"),
            "added_features": self.added == "text_time",
            "time_id_features": self.added == "text_time",
        }
        for name, need in needed.items():
            if need and getattr(self, name) is None:
                raise ValueError(
                    f"context.{name} is None; projection {self.projection!r} and added "
                    f"{self.added!r} need a number"
                )
        if isinstance(self.features, tuple) and (
            self.projection or self.refiner_depth or self.added == "text"
        ):
            raise ValueError(
                f"context.features is {self.features}; tokens that are projected, refined or "
                "pooled have the same for all levels"
            )

    @property
    def width(self) -> int:
        """Features of the tokens, of the finest level where they differ."""
        return self.features[0] if isinstance(self.features, tuple) else self.features

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the arrays that the network must be given."""
        from_image = "image" in (self.projection or "") or "image" in (self.added or "")
        needs = {
            # a context that is an image is made from its embedding alone
            "context": self.projection != "image",
            "pooled": self.added in ("text_time", "text_image"),
            "time_ids": self.added == "text_time",
            "image_embedding": from_image,
            "hint": self.added == "image_hint",
        }
        return tuple(name for name, need in needs.items() if need)

    @property
    def may_take(self) -> tuple[str, ...]:
        """Names of the arrays that it can do without."""
        return ("context_mask", "time_cond") if self.time_cond_features else ("context_mask",)


def at_level(value, level: int):
    """The entry of a level, from a tuple of them or one value for all.

    >>> at_level((1, 2), 1), at_level(3, 1)
    (2, 3)
    """
    return value[level] if isinstance(value, tuple) else value
