"""A learned image codec whose activations an NPU can run. Light to import: torch is loaded where it is used."""
