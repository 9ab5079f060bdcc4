"""Exports codecs to ONNX files, and runs these. Importing it is fast: neither torch nor onnx is loaded here."""
