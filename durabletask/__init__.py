"""Durable execution as a library: a long business process is one async function."""
