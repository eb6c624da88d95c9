"""Command line of `cri.studies.in_context`."""

from cri.studies.in_context.study import main

if __name__ == "__main__":
    main()
