"""`python -m reverse` is `reverse`."""

from reverse.cli import main

if __name__ == "__main__":
    main()
