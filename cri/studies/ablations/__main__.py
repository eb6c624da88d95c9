"""Command line of `cri.studies.ablations`."""

from cri.studies.ablations.study import main

if __name__ == "__main__":
    main()
