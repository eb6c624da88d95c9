"""`python -m cri.studies.matrix`."""

from cri.studies.matrix.study import main

if __name__ == "__main__":
    main()
