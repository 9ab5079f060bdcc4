"""What NPU families accept, and their compilers."""
