"""`python -m cri.studies.representation_geometry`."""

from cri.studies.representation_geometry.study import main

if __name__ == "__main__":
    main()
