"""GLIANet in PyTorch: the model, its checkpoints, training and evaluation."""
