"""What a codec is made of and what a checkpoint says of itself. Cannot import torch."""
