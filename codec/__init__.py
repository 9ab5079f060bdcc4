"""A learned image codec whose activations an NPU can run. Light to import: torch is loaded where it is used."""

import warnings

# CompressAI scripts two functions at import, and torch 2.14 says so at every start of every command.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
