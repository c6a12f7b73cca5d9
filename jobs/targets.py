"""Ray job: `python -m jobs.targets RECIPE`."""

from jobs.stage import main

if __name__ == "__main__":
    main("targets")
