"""A checkpoint as a repository of the Hugging Face Hub. Cannot import torch."""
