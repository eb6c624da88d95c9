"""Examples in the prompt instead of training: which of them lead a pretrained model to an answer?"""
