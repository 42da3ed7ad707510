"""Export of a checkpoint to an ONNX bundle, and the demo of the whole chain."""
