"""Engines on NVIDIA GPUs: TensorRT, TensorRT for RTX, and ONNX Runtime on CUDA.

In: a bundle, and its engine where there is one. Out: a `GpuBackend`. `device` knows the GPUs, `lanes` holds memory and
streams, `arrays` reads arrays of other libraries, `views` makes a model's inputs on the GPU, `engine` says which engine
files there are. `tensorrt` and `onnxruntime` run them; `tensorrt_api` is TensorRT's own interface, as types.

Other folders use: Gpu, list_gpus, why_no_gpu of device; GpuBackend of lanes; TARGETS, Target, EngineRecord, Profile,
engine_path, engines, record_path, system of engine; the modules device and tensorrt_api, and IBuilderConfigRtx,
TensorRTBuilder, TensorRTBuilderRtx of the latter.
"""
