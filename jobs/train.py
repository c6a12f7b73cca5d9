"""Ray job: `python -m jobs.train RECIPE`."""

from jobs.stage import main

if __name__ == "__main__":
    main("train")
