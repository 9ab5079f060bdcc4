"""Operator lists of NPU families, and their compilers."""
