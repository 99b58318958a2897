"""Gangs: several jobs that start together or not at all."""
