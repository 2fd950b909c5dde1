"""Text to image on your own machine, with a plan before loading and measurements you can trust."""

__version__ = "0.1.0"
