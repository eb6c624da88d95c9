"""Case or Rule, from the Inside: do transformers answer arithmetic from cases or by a rule?"""
