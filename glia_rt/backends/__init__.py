"""Inference backends behind one small protocol.

In: a bundle and options. Out: a `Backend`, whose `run` turns arrays into scores. `base` defines the protocol. `choose`
lists the backends and picks one. `several` joins several backends into one. `quiet` imports engines with their
telemetry off. Each backend on a CPU is one file; the folder `cuda` holds the backends on NVIDIA GPUs.

Other folders use: Backend, BackendOptions, CPU_BATCH_SIZE of base; AUTO, BACKENDS, open_backend, open_backends,
unavailable, default_precision of choose; SeveralBackend of several; import_engine of quiet; DISTRIBUTIONS,
installed_twice of onnxruntime.
"""
