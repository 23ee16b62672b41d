"""`python -m sparkd`: the same as the command `sparkd`."""

from sparkd.cli.main import main

if __name__ == "__main__":
    main()
