"""Training: models in PyTorch, their checkpoints, and how labelled pictures make one.

In: labelled pictures, a family's config, options. Out: checkpoint.pt, and the figures of the held-out part. `train` is
a run; `models` are the families, `datasets` the labels, `backbones` the pretrained networks. `evaluate` holds a model
against the labels, by the figures of `metrics` and the intervals of `bootstrap`; `report` shows this on a page.

Other folders use: the folders models and datasets; Checkpoint, LARGE_MATRIX, make_checkpoint of checkpoint; split_heads
of backbones; TrainOptions of options; Origin, train of train; TrainResult of run_folder; MODEL, read_recipe of recipe;
compare of metrics; the module evaluate, and judge, difference of it; Engine of scorer; write_report of report;
DISTORTIONS, LEVELS, UNORDERED, distort of distortions; HELD_OUT of ranking; the module synthetic.
"""
