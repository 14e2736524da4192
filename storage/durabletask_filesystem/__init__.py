"""Filesystem storage: one folder, one host, no dependency."""
