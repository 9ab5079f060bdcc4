"""Fake quantization: training for int8, post-training calibration, and int8 arithmetic in evaluation."""
