"""Which cases are held out, the tokens of every case, and how cases relate to each other."""
