"""glia-rt: image quality scores from a GLIANet bundle, without torch."""

__version__ = "0.1.0"
