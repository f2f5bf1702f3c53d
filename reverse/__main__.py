"""Run the command line: `python -m reverse` does what `reverse` does."""

from reverse.cli import main

if __name__ == "__main__":
    main()
