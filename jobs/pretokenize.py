"""Ray job: `python -m jobs.pretokenize RECIPE`."""

from jobs.stage import main

if __name__ == "__main__":
    main("pretokenize")
