"""A model's answers: greedy decoding from the prompt alone, and answers read back as tables."""
