"""`python -m cri.studies.attribution_quality`."""

from cri.studies.attribution_quality.study import main

if __name__ == "__main__":
    main()
