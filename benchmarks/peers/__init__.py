"""Packages of the field, each with its own network: run as its documentation shows, where it can run at all."""
