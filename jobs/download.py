"""Ray job: `python -m jobs.download RECIPE`."""

from jobs.stage import main

if __name__ == "__main__":
    main("download")
