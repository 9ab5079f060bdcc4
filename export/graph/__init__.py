"""From a codec to a checked ONNX graph."""
