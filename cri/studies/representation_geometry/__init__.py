"""What shape do numbers take inside, and what breaks in the hole?"""
