"""Training: models in PyTorch, their checkpoints, and how labelled pictures make one.

In: labelled pictures, a family's config, options. Out: checkpoint.pt, and the figures of the held-out part. `train` is
a run; `models` are the families, `datasets` the labels, `backbones` the pretrained networks.

Other folders use: the folders models and datasets; Checkpoint, make_checkpoint of checkpoint; split_heads of backbones;
TrainOptions of options; TrainResult, train of train; Metrics, compare of metrics; DISTORTIONS, LEVELS, distort of
distortions.
"""
