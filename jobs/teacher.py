"""Ray job: `python -m jobs.teacher RECIPE`."""

from jobs.stage import main

if __name__ == "__main__":
    main("teacher")
