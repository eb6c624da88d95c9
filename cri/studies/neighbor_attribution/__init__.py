"""Which training cases does a prediction in the held-out square rest on?"""
