"""Integrations: the losses, policies and the engine inside other frameworks.

One file = one framework; it imports that framework at its top, and nothing imports the file but
who uses it, so that bonaware needs none of them.
"""
