"""Text to image on your own machine, with a plan before loading and figures one can trust."""

__version__ = "0.1.0"
