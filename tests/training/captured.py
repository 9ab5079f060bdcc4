"""`train_accel.py`, whose graphs are captured and run operation by operation: a C++ compiler would take minutes."""

import torch._inductor.compile_fx
from torch._dynamo.backends.debugging import aot_eager

import train_accel
from codec.cli import run

if __name__ == "__main__":
    torch._inductor.compile_fx.compile_fx = aot_eager
    run(train_accel.main)
