"""`python -m arvid` is the `arvid` command."""

from arvid.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
