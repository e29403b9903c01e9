"""Steps from one schema to the next, in the order of their numbers. A released step is never edited.

Each says `up` and `down` in statements of its own, and knows nothing of `tinysphere.models`, which moves on.
"""
