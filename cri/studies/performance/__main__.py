"""`python -m cri.studies.performance`."""

from cri.studies.performance.study import main

if __name__ == "__main__":
    main()
