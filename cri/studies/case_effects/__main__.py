"""`python -m cri.studies.case_effects`."""

from cri.studies.case_effects.study import main

if __name__ == "__main__":
    main()
