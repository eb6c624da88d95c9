"""How fast, against what a user would use instead?"""
