"""`python -m cri.studies.recipe_search`."""

from cri.studies.recipe_search.study import main

if __name__ == "__main__":
    main()
