"""`python -m cri.explore RUN [RUN ...] --out page.html`."""

from cri.explore.command import main

if __name__ == "__main__":
    main()
