"""The rule as code: the language it may use, a tracer that executes it line by line, and each task's rule."""
