"""The explorer: one self-contained page of one or several runs, to open from disk, click through and send on."""
