"""`python -m cri.studies.rule_steps`."""

from cri.studies.rule_steps.study import main

if __name__ == "__main__":
    main()
