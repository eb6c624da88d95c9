"""`python -m cri.studies.lso_map`."""

from cri.studies.lso_map.study import main

if __name__ == "__main__":
    main()
