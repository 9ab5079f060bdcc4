"""The codec as ONNX files, and the runtime that uses them. Light to import: neither torch nor onnx is loaded here."""
