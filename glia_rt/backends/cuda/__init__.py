"""Backends on NVIDIA GPUs: TensorRT, TensorRT for RTX, and ONNX Runtime on CUDA.

In: a bundle, and its engine where there is one. Out: a `GpuBackend`. `device` lists the GPUs, `lanes` holds memory and
streams, `arrays` reads arrays of other libraries, `views` makes a model's inputs on the GPU, and `engine` finds a
bundle's engines and reads their records. `tensorrt` runs engines, and `onnxruntime` runs the bundle's own graphs.
`tensorrt_api` holds the part of TensorRT's interface that is used here, as types.

Other folders use: Gpu, list_gpus, why_no_gpu of device; GpuBackend of lanes; LEAST_PORTABLE, TARGETS, Target,
EngineRecord, Profile, engine_path, engines, record_path, system of engine; the modules device and tensorrt_api, and
IBuilderConfigRtx, TensorRTBuilder, TensorRTBuilderRtx of the latter.
"""
