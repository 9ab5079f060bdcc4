"""The parts of the training program. Besides the benchmarks, only this package uses Accelerate."""
