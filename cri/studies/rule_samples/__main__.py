"""Command line of `cri.studies.rule_samples`."""

from cri.studies.rule_samples.study import main

if __name__ == "__main__":
    main()
