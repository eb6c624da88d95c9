"""`python -m cri.studies.retraining_bank`."""

from cri.retraining.bank import main

if __name__ == "__main__":
    main()
