"""Many models of one shape trained at once, as stacked parameters."""
