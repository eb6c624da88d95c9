"""Studies: one module each, a config dataclass, a `run` and a command line. They compose the layers below."""
