"""The shipped recipes: YAML files, found by name with `dualtoken run NAME`."""
