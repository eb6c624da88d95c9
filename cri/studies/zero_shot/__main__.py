"""`python -m cri.studies.zero_shot`."""

from cri.studies.zero_shot.study import main

if __name__ == "__main__":
    main()
