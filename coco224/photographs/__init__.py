"""Decodes any photograph to an upright RGB picture, and computes its crops."""
