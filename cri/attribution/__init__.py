"""Scores for every (training case, test case) pair: content baselines, neighbours, gradients, influence.

Every method returns scores [train, test], larger meaning more similar or more supporting, aligned to the
training and test ids it was given, so that `cri.statistics` treats them all alike.
"""
