"""Ray job: `python -m jobs.scenes RECIPE`."""

from jobs.stage import main

if __name__ == "__main__":
    main("scenes")
