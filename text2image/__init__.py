"""Text2Image: a text-to-image server with step-level batching for the Stable Diffusion family."""

__version__ = "0.1.0"
