"""Measurement score-based diffusion models: train on incomplete measurements, reconstruct new ones, draw images."""
