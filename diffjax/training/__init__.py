"""Training: state, step, weight averages, sharding, checkpoints and the small parts of a loop."""
