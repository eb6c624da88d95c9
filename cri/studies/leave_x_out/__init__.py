"""Locality or step coverage: where does a model fail when as many cases are held out in another way?"""
