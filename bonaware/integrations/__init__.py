"""Integrations: the losses, policies and the engine inside other programs.

One file = one framework or harness; it imports that at its top, and nothing imports the file but
who uses it, so that bonaware needs none of them.
"""
