"""`python -m cri.studies.leave_x_out`."""

from cri.studies.leave_x_out.study import main

if __name__ == "__main__":
    main()
