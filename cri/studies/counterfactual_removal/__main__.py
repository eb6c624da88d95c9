"""`python -m cri.studies.counterfactual_removal`."""

from cri.studies.counterfactual_removal.study import main

if __name__ == "__main__":
    main()
