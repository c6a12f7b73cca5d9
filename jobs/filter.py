"""Ray job: `python -m jobs.filter RECIPE`."""

from dualtoken.jobs.stage_command import main

if __name__ == "__main__":
    main("filter")
