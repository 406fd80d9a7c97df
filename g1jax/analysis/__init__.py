"""Analysis of training runs: perception and reasoning over time, other appearances, transfer."""
