"""The model that glia-rt ships: a small GLIANet, trained on human ratings of photographs.

In: the name "starter", where a bundle or a checkpoint is asked for. Out: the path of the one in this folder.
`starter.glia` is the bundle, without the FP16 graphs and with `checkpoint.pt` beside it. NOTICE says what they come
from, and docs/starter.md how good they are.

Other folders use: STARTER, FOLDER, BUNDLE, CHECKPOINT, CARD, resolve_bundle, resolve_checkpoint,
is_bundle of paths.
"""
