"""The command line, and the client that task containers use."""

__version__ = "0.1.0"
