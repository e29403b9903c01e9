"""TinySphere: the thin server of a fleet of devices."""

from importlib.metadata import version

__version__ = version("tinymlops")

__all__ = ["__version__"]
