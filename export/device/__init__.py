"""The entropy coder in C: its sources, how they are compiled, and the compiled library for Python. Needs no torch."""

from export.device.compiling import compile_command, compile_library
from export.device.library import DeviceCoder
from export.device.program import cli, main

__all__ = ["DeviceCoder", "cli", "compile_command", "compile_library", "main"]
