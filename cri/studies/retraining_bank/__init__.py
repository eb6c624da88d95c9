"""Models trained again without chosen or random cases: see `cri.retraining.bank`."""
