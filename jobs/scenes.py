"""Ray job: `python -m jobs.scenes RECIPE`."""

from dualtoken.jobs.stage_command import main

if __name__ == "__main__":
    main("scenes")
