"""Walks over a grid that take stretches of it again: up by fresh noise, and down."""

from dataclasses import dataclass

import diffjax as dj


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How often stretches of a grid are walked, see `diffjax.resampling`."""

    num_resamples: int = 1
    """how often each stretch of steps is walked, up again by fresh noise and down: self-recurrence,
    time travel, which lets a sample follow its guidance and its parts agree; 1 is once"""
    jump_length: int = 1
    """steps of a stretch"""

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
