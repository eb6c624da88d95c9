"""Study: does a model execute the rule that its prompt states?"""
