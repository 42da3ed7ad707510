"""Bundle -> TensorRT engines and Triton model repositories."""
