"""What training runs show: perception and reasoning over time, other appearances, transfer."""
