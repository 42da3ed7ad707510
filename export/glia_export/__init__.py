"""Export: a checkpoint becomes a bundle of ONNX graphs whose scores are held to PyTorch's.

In: checkpoint.pt. Out: NAME.glia. `export` goes from one to the other; `trace` makes the graphs, `views` are the rules
in torch, `half` is the model in FP16, `parity` compares. `demo` runs the whole chain.

Other folders use: the module export; the folder demo.
"""
