"""`python -m raysep`: the command line."""

from raysep.cli import main

if __name__ == "__main__":
    main()
