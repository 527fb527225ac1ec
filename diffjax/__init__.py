"""Diffusion models in JAX as pure functions."""
