"""Estimates of the images, bytes, memory, forward passes and time of a run, before it starts."""
