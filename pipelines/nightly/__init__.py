"""Nightly evaluation: what each night of a series of evaluations comes to."""
