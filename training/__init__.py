"""What the training program stands on; the only package that knows Accelerate."""
