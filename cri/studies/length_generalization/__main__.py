"""`python -m cri.studies.length_generalization`."""

from cri.studies.length_generalization.study import main

if __name__ == "__main__":
    main()
