"""`python -m cri.studies.neighbor_attribution`."""

from cri.studies.neighbor_attribution.study import main

if __name__ == "__main__":
    main()
