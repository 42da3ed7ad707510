"""Engines: a bundle becomes TensorRT engines, or a model for Triton Inference Server.

In: NAME.glia. Out: NAME.glia/engines/, or a Triton model repository. `build` builds, `rewrite` changes the graph for
TensorRT before, `kernels` reads what came out, `triton` writes repositories.

Other folders use: the module build; NO_RTX, checked_target, write_repository of triton.
"""
