"""Shapes, weights and attention of the models, and their activations through TransformerLens."""
