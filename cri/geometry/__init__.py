"""The shape that numbers take inside a model: spectra, read-outs, phases, and the interventions that test them."""
