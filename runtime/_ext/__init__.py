"""The compiled hot path. There is no Python fallback: a missing extension is a build that was not made."""
