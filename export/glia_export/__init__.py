"""Checkpoint -> ONNX bundle, and the demo of the whole chain."""
