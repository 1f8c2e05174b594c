"""Text2Image: a text-to-image server with step-level batching for the Stable Diffusion family."""

from pathlib import Path

__version__ = "0.1.0"
# Commands that people type by the names that they have always had, as `python -m text2image.keys`.
__path__.append(str(Path(__file__).with_name("ops")))
