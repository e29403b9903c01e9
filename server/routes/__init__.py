"""HTTP: parse, call, answer. What may be asked is one table; the logic is below."""
