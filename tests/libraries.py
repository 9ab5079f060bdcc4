"""What the programs import from other projects and takes seconds, for the process that `programs.Program` forks from.

It leaves out what reads the environment when it is imported, and what starts threads (onnxruntime).
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the programs have their own filters
    import pandas
    import pyarrow
    import torch._dynamo
    import torch.distributed.tensor

    import codec.compressai

__all__ = ["codec", "pandas", "pyarrow", "torch"]
