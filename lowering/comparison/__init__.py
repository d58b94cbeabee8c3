"""Comparing a result with what the operator computes, and naming what went wrong."""
