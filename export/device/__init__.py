"""The entropy coder in C: its sources, how they are compiled, and the compiled library for Python. Needs no torch."""

from export.device.compiling import compile_command, compile_library
from export.device.library import DeviceCoder

__all__ = ["DeviceCoder", "compile_command", "compile_library"]
