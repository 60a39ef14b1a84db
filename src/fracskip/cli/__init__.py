"""The command line: parses, calls, prints. Everything it does can be done from Python."""

from fracskip.cli.main import main

__all__ = ["main"]
