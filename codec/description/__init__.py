"""A codec's architecture and a checkpoint's description. Must not import torch."""
