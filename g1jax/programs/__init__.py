"""The command lines: train, evaluate, analyze, dataset."""
