"""Adapters: the unified model as a model of others' evaluation suites, which bring their own sets and scores.

Each needs its suite installed, and is imported by it alone; `answering.py` is what they share.
"""
