"""Arithmetic of a GPU that programs ask for."""

import torch


def exact_fp32() -> None:
    """Makes FP32 on a GPU FP32. By default its convolutions are in TF32, which has the mantissa of fp16."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
