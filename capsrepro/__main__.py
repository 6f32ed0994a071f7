"""`python -m capsrepro`: the command line, where no script of that name is on PATH."""

from capsrepro.cli.main import main

if __name__ == "__main__":
    main()
