"""The project's version: `checkpoints.__version__`, the same in all four packages."""

__version__ = "0.2.0"
