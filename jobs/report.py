"""Ray job: `python -m jobs.report RECIPE`."""

from jobs.stage import main

if __name__ == "__main__":
    main("report")
