"""Command line of `cri.studies.rule_reading`."""

from cri.studies.rule_reading.study import main

if __name__ == "__main__":
    main()
