"""Policy: resources read into rules, rules compiled into entries, and the answer to "who may talk"."""
