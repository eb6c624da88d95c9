"""Which attribution method predicts what retraining does?"""
