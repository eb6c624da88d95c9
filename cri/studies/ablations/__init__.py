"""Study: what does the hole depend on?"""
