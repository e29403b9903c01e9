"""The software's version, which is none of the wire's, the journal's or the package's."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tinymlops")
except PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "0+unknown"
