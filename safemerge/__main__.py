"""``python -m safemerge``: the command line, in whichever interpreter was named."""

from safemerge.cli.main import main

if __name__ == "__main__":
    main()
