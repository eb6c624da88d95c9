"""Study: how many samples of a new rule does a model need?"""
