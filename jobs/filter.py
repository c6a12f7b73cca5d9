"""Ray job: `python -m jobs.filter RECIPE`."""

from jobs.stage import main

if __name__ == "__main__":
    main("filter")
