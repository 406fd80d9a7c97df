"""Supervised fine-tuning: demonstrations, generated on the fly or read from a dataset, and the supervised step."""
