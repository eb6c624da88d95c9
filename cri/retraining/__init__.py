"""Ground truth for attribution: models trained again without chosen or random cases, and their records."""
