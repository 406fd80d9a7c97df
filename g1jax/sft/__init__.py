"""Supervised fine-tuning: demonstrations, made fresh or read from a dataset, and the step that learns them."""
