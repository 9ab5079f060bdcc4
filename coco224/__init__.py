"""Photographs to 224x224 crops in an Arrow dataset to batches. Imports no other package of this project."""
