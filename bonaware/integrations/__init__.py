"""bonaware inside other programs: one module per evaluation harness, an extra for each.

Nothing here is imported by the rest of the package, and every module imports its peer.
"""
