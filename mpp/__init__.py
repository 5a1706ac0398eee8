"""Masked-patch pretraining of Vision Transformers. Importing this package costs nothing."""

__version__ = "0.1.0"
