"""One run, from its config to a finished folder: set-up, batches, optimiser steps, checkpoints."""
