"""Weights in, numbers out: fine-tuning, statistics, and the comparison of pretraining arms."""
