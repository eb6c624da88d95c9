"""Does the model execute the steps that it writes?"""
