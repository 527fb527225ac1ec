"""The mathematics of diffusion: levels, schedules, parameterizations, grids, sampling, losses."""
