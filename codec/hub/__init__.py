"""Makes a repository of the Hugging Face Hub from a checkpoint. Must not import torch."""
