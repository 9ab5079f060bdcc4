"""What the programs import from other projects, apart from what reads the environment when it is imported.

The process that `programs.run` forks from imports this module. An import takes seconds, and a fork milliseconds.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the programs have their own filters
    import compressai.models
    import onnx
    import onnxruntime
    import pandas
    import pyarrow
    import torch._dynamo
    import torch.distributed.tensor

__all__ = ["compressai", "onnx", "onnxruntime", "pandas", "pyarrow", "torch"]
