"""Makes a checked ONNX graph from a codec."""
