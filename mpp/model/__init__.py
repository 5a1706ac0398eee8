"""Batch in, loss out: the timm ViT, the corruption of its tokens, what must be predicted, and the tasks."""
