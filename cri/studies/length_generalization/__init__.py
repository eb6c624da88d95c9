"""Trained on short numbers, how far does each format carry, and what do positions have to do with it?"""
