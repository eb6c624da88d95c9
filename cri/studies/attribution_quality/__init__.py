"""Which attribution method foretells what retraining does?"""
