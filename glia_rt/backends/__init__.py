"""Inference engines behind one small protocol.

In: a bundle and options. Out: a `Backend`, whose `run` turns arrays into scores. `base` has the protocol, `choose` the
list of engines and the choice among them, and one file or folder each engine.

Other folders use: Backend, BackendOptions, CPU_BATCH_SIZE of base; AUTO, BACKENDS, open_backend, unavailable,
default_precision of choose; SeveralBackend of several; DISTRIBUTIONS, installed_twice of onnxruntime.
"""
