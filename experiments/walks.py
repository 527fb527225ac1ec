"""Walks over a grid that take stretches of it again: up by fresh noise, and down."""

from dataclasses import dataclass

import diffjax as dj


@dataclass(frozen=True)
class Walk:
    """How often stretches of a grid are walked.

    Attributes:
      jump_length: steps of a stretch.
      num_resamples: how often each is walked, see `diffjax.resampling`; 1 is once, as ever.
    """

    jump_length: int = 1
    num_resamples: int = 1

    def __post_init__(self):
        if self.num_resamples < 1:
            raise ValueError(f"num_resamples is {self.num_resamples}; every step is walked once.")
        if self.jump_length != 1 and not self.again:
            raise ValueError(
                f"jump_length is {self.jump_length}, but nothing is walked again: set "
                "num_resamples to 2 or more."
            )

    @property
    def again(self) -> bool:
        """Whether any step is walked more than once."""
        return self.num_resamples > 1

    def solver(self, solver: dj.Solver) -> dj.Solver:
        """The solver, which also walks up where the walk does."""
        return dj.renoising(solver) if self.again else solver

    def levels(self, levels: dj.NoiseLevel) -> dj.NoiseLevel:
        """The levels of a grid in the order in which they are visited."""
        return dj.revisited(levels, **vars(self)) if self.again else levels

    def count(self, num_steps: int) -> int:
        """The number of steps that are taken, of a grid of `num_steps`."""
        return len(dj.resampling(num_steps, **vars(self))) - 1 if self.again else num_steps


ONCE = Walk()
