"""Nightly evaluation: what each night of a series of evaluations comes to.

May import the rooms before it in `ROOMS` (tests/test_imports.py), up to `maintenance`. A history is files on
any fsspec store; every state is a pure function of them and the clock. It sends alerts over the network where
a spec says so. Importing the room brings neither torch nor ray: what measures comes in from outside.
"""
