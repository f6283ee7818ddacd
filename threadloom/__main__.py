"""The command line as `python -m threadloom`."""

from threadloom.stages.cli import main

if __name__ == "__main__":
    main()
